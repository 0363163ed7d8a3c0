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


class LostLoader(UserError):
    """A process that loads images died."""

    exit_code = 1

    def __init__(self, why: Exception):
        super().__init__(f"a process that loads images died ({reason(why).strip('.: ')}): out of memory? "
                         "Try fewer --workers, and go on with --resume")


class Interrupted(UserError):
    """SIGTERM or SIGINT came, and the run was saved: exit code 143 or 130, as the shell would give."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def reason(error: Exception, length: int = 120) -> str:
    """An exception in a few words: its type and the first line of what it says, cut to this length."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:length]}"


def lost_loader(error: BaseException | None) -> bool:
    """Whether a process that loads images died: torch raises that at whatever line the main process is in.

    The line may be in a `finally`, or in code that raises something else in turn: hence the whole chain.
    """
    while error is not None and not re.match(r"DataLoader worker \(pid", str(error)):
        error = error.__context__
    return error is not None


@contextmanager
def one_line_errors():
    """Around a script's main(): a `UserError` inside ends the process with its message and its exit code."""
    try:
        yield
    except UserError as error:
        message, exit_code = str(error), error.exit_code
    except KeyboardInterrupt:                       # before training has begun, or the second one
        message, exit_code = "interrupted, nothing more was saved", 130
    except Exception as error:
        if not lost_loader(error):
            raise
        message, exit_code = str(LostLoader(error)), LostLoader.exit_code
    else:
        return
    process = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""       # set by torchrun
    print(f"{process}error:", " ".join(message.split()), file=sys.stderr, flush=True)
    raise SystemExit(exit_code)
