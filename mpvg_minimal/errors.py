"""A user's mistake is one line on stderr and exit code 2; a mistake of ours is a traceback."""
import os
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


@contextmanager
def one_line_errors():
    """Around a script's main(): a `UserError` inside ends the process with its message and its exit code."""
    try:
        yield
    except UserError as error:
        process = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""       # set by torchrun
        print(f"{process}error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
