"""A user's mistake is one line on stderr and exit code 2. So is a failure of the machine, with exit code 1.

Anything else is a mistake of ours and stays a traceback.
"""
import errno
import os
import re
import signal
import sys
from contextlib import contextmanager

from .streams import lasting_output


class UserError(Exception):
    """One line for the user: what was found, what was expected, what to do."""

    exit_code = 2


class NonFinite(UserError):
    """A loss, a gradient or a weight became NaN or infinite. saved_at: of the newest checkpoint, if any."""

    exit_code = 1

    def __init__(self, message: str, saved_at: str, *, try_this: str = "a smaller --lr"):
        good = f"the last good checkpoint is after {saved_at}" if saved_at else "there is no checkpoint yet"
        super().__init__(f"{message}; {good}. Start again with {try_this}, in another --out")


class Exhausted(UserError):
    """Memory, or another resource of the machine, was not enough, or it ended a process that is needed."""

    exit_code = 1


class Interrupted(UserError):
    """A signal came, and the run was saved. The exit code is 128 and the signal's number, as a shell gives it."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


SHARED_MEMORY = ("the shared memory of this machine, /dev/shm, is too small for the images that workers load: give the "
                 "container more, for instance by docker run --shm-size=8g, or lower --workers; --workers 0 needs none")
# What torch, CUDA, numpy, Python and Linux say when a resource is used up, and what the user can do.
EXHAUSTED = {
    r"shared memory\(shm\)|out of shared memory|</torch_\d": SHARED_MEMORY,
    r"[Tt]oo many open files": "more files are open than this shell allows: raise the limit by ulimit -n, or use fewer "
    "workers; --workers 0 needs least",
    r"OutOfMemoryError|out of memory|STATUS_ALLOC_FAILED": "the memory of the GPU is not enough: lower --batch-size or "
    "--image-size, choose a smaller --model, or take each batch in parts by train_imagenet.py's --accumulate",
    r"MemoryError|can't allocate memory|Cannot allocate memory": "the memory of this machine is not enough: lower "
    "--batch-size, --image-size or --workers, or choose a smaller --model"}


def exhausted(error: BaseException) -> Exhausted | None:
    """The line for an exception that says that a resource of the machine is used up. None for any other exception."""
    if isinstance(error, (RuntimeError, OSError, MemoryError)):
        lines = [f"{type(error).__name__}: {line}" for line in str(error).splitlines() or [""]]
        for pattern, advice in EXHAUSTED.items():
            if said := next(filter(re.compile(pattern).search, lines), None):
                return Exhausted(f"{advice} ({said[:120]})")
    return None


def reason(error: BaseException, length: int = 120) -> str:
    """An exception in a few words: its type and the first line of its message, cut to this length."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:length]}"


def as_user_error(error: BaseException) -> UserError | None:
    """The one line that is said about an exception. None for a mistake of ours."""
    if isinstance(error, KeyboardInterrupt):        # before training has begun, or the second one
        return Interrupted("interrupted, nothing more was saved", signal.SIGINT)
    return error if isinstance(error, UserError) else exhausted(error)


@contextmanager
def one_line_errors():
    """Put this around a script's main(). A `UserError` inside ends the process with its message and its exit code."""
    known = None
    with lasting_output() as out:
        try:
            yield
            out.flush()
        except (Exception, KeyboardInterrupt) as error:
            known = as_user_error(error)
            if not known:
                raise
        if not known and out.lost and out.lost.errno not in (errno.EPIPE, errno.EIO):       # nobody reads any more
            known = Exhausted(f"what was printed could not be written to stdout ({reason(out.lost)})")
        if known:
            print_error(str(known))
            raise SystemExit(known.exit_code)


def print_error(message: str) -> None:
    """Print the message as one line on stderr, with the process's number under torchrun."""
    process = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""       # set by torchrun
    words = " ".join(message.split())
    words = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)   # names of files
    print(f"{process}error:", words, file=sys.stderr, flush=True)
