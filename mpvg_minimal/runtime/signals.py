"""SIGTERM (a cluster wants its machine back) and SIGINT (Ctrl-C): noted when they come, acted on between steps."""
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

ONE_EVENT = 1.0         # seconds: what comes so soon after the first signal is the same event


class Interrupt:
    """`number` is 0 until a signal comes, then the signal's number; `since` is when it came."""

    number, since = 0, 0.0


@contextmanager
def noted() -> Iterator[Interrupt]:
    """Inside, the first SIGTERM or SIGINT is noted in the `Interrupt` given; a later one acts at once, as usual.

    Not one that comes within a second: a cluster may signal every process, and `torchrun` passes its own signal on.
    """
    interrupt = Interrupt()

    def note(number, _frame):
        if not interrupt.number:
            interrupt.number, interrupt.since = number, time.monotonic()
        elif time.monotonic() - interrupt.since > ONE_EVENT:
            restore()
            signal.raise_signal(number)

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        restore()
