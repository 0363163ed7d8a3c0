"""SIGTERM (a cluster wants its machine back) and SIGINT (Ctrl-C): noted when they come, acted on between steps."""
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupt:
    """`number` is 0 until a signal comes, then the signal's number."""

    number = 0


@contextmanager
def noted() -> Iterator[Interrupt]:
    """Inside, the first SIGTERM or SIGINT is noted in the `Interrupt` given; a second one acts at once, as usual."""
    interrupt = Interrupt()

    def note(number, _frame):
        interrupt.number = number
        restore()

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
