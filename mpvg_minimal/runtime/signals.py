"""Signals that ask a run to stop: SIGTERM and SIGUSR1 from a cluster, SIGINT (Ctrl-C), SIGHUP (a closed terminal).

They are noted when they come and acted on between steps. `nohup` makes a process ignore SIGHUP: it stays ignored.
Workers, the processes that load images, ignore them all, so that the main process can still save.
"""
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

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

    One that comes within a second is ignored: a cluster may signal every process, and `torchrun` passes its own on.
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


def ignore(_worker: int) -> None:
    """In a worker: ignore the signals, which reach it too. Before this it only noted them, as its parent did."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)


@cache
def deaths(process: int) -> list[RuntimeError]:
    """The deaths of workers of this process (its number), noted from now on. To be called after workers were started.

    torch's handler of SIGCHLD raises each at whatever line the process is in, also where it saves or reports another.
    """
    noted: list[RuntimeError] = []
    multiprocessing.util.Finalize(None, kill_workers, exitpriority=0)
    if threading.current_thread() is threading.main_thread():           # elsewhere torch sets no handler
        handler = signal.getsignal(signal.SIGCHLD)

        def note(*event):
            try:
                handler(*event)
            except RuntimeError as error:
                if os.getpid() != process:                              # in a fork, which has a list of its own
                    raise
                noted.append(error)
        signal.signal(signal.SIGCHLD, note)
    return noted


def kill_workers() -> None:
    """At the end of the main process, which would send them SIGTERM and wait for their end."""
    for worker in filter(lambda process: process.daemon, multiprocessing.active_children()):
        worker.kill()
