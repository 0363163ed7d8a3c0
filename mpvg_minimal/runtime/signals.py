"""Signals that ask a run to stop: SIGTERM and SIGUSR1 from a cluster, SIGINT (Ctrl-C), SIGHUP (a closed terminal).

They are noted when they come and acted on between steps. `nohup` makes a process ignore SIGHUP: it stays ignored.
"""
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGUSR1)
ONE_EVENT = 1.0         # seconds: a second signal that comes within this time belongs to the same event


@dataclass
class Interrupt:
    """The signal that came."""

    number: int = 0     # 0: none came
    since: float = 0.0  # when it came


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Inside, the first signal of `STOP` is noted in the `Interrupt`. A later one acts at once, as it usually does.

    One that comes within a second is ignored, because a cluster may signal every process, and `torchrun` passes its own
    signal on.
    """
    interrupt = Interrupt()

    def note(number, _frame):
        if not interrupt.number:
            interrupt.number, interrupt.since = number, time.monotonic()
        elif time.monotonic() - interrupt.since > ONE_EVENT:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    before = {number: signal.getsignal(number) for number in STOP
              if number not in MAY_BE_IGNORED or signal.getsignal(number) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
