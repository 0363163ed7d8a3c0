"""Output that may go away: `| head -1` ends, a terminal is closed, a disk is full. The program goes on without it."""
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Lasting:
    """A stream that drops what cannot be written, and remembers why."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.lost: OSError | None = None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")       # letters that the terminal's encoding does not have

    def write(self, text: str) -> None:
        self.flush(text)

    def flush(self, text: str | None = None) -> None:
        try:
            self.stream.flush() if text is None else self.stream.write(text)
        except OSError as error:
            self.lost = error
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())     # what is buffered can be flushed to there

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting_output() -> Iterator[Lasting]:
    """Inside, stdout and stderr are `Lasting`. Yields stdout. A stream that was closed from the start is /dev/null."""
    before = sys.stdout, sys.stderr
    out, err = sys.stdout, sys.stderr = [Lasting(stream or open(os.devnull, "w")) for stream in before]
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
