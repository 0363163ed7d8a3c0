"""A user's mistake is one line on stderr and exit code 2; a mistake of ours is a traceback."""
import os
import re
import sys
from contextlib import contextmanager


class UserError(Exception):
    """What was got, what was expected, what to do: in one line."""

    exit_code = 2


class NonFinite(UserError):
    """The loss or its gradient became NaN or infinite: training cannot go on."""

    exit_code = 1


class Interrupted(UserError):
    """SIGTERM or SIGINT came, and the run was saved: exit code 143 or 130, as the shell would give."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def reason(error: Exception) -> str:
    """An exception in a few words: its type and the first line of what it says."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:120]}"


@contextmanager
def one_line_errors():
    """Around a script's main(): a `UserError` inside ends the process with its message and its exit code."""
    try:
        yield
    except UserError as error:
        message, exit_code = str(error), error.exit_code
    except KeyboardInterrupt:                       # before training has begun, or the second one
        message, exit_code = "interrupted, nothing more was saved", 130
    except RuntimeError as error:                   # torch raises it at whatever line it finds the process gone
        if not re.match(r"DataLoader worker \(pid", str(error)):
            raise
        reason_given = str(error).strip(". ")
        message = f"a process that loads images died: {reason_given}. Out of memory? Try fewer --workers and --resume"
        exit_code = 1
    else:
        return
    process = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""       # set by torchrun
    print(f"{process}error:", " ".join(message.split()), file=sys.stderr, flush=True)
    raise SystemExit(exit_code)
