"""One way to write a file: all of it or nothing.

The content goes into a temporary file beside the real one, which is renamed only when it is complete. A rename is
atomic, so a kill at any moment leaves either the old file or the new one, and never a part of one.
"""
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError, reason


@contextmanager
def replacing(path: Path, *, keep: Path | None = None, many: bool = False,
              replace: bool = True, advice: str = "is the disk full?") -> Iterator[BinaryIO]:
    """A temporary file to write to. At the end it is flushed to the disk and takes the name `path`; folders are made.

    keep: the name that the old file gets, if there is one; None: the old file is replaced.
    many: for one of very many files that can be made again. It is not flushed, and several processes, also on several
    machines, may write it: the temporary file has a random name. The name is short, because that of the file may be as
    long as the file system allows.
    replace: if False, a file that has the name by then stays, and the new one is thrown away.
    UserError if the file cannot be written; it ends with the advice. The old file is then untouched.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}" if many else f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)                       # a killed process left it
        with open(temporary, "xb") as file:                     # "x" follows no symbolic link
            yield file
            if not many:
                file.flush()
                os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        if replace or not linked(temporary, path):
            os.replace(temporary, path)
        if not many:
            flush_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({reason(error)}): {advice}") from error
    finally:
        with suppress(OSError):                                 # after the rename it does not exist any more
            temporary.unlink()


def linked(temporary: Path, path: Path) -> bool:
    """Give the file the name `path` too, unless that is taken. False where the file system has no hard links."""
    try:
        os.link(temporary, path)
    except OSError as error:
        return isinstance(error, FileExistsError)
    return True


def write_whole(path: Path, save: Callable[[BinaryIO], Any], **options: Any) -> None:
    """save(file), to the file of this name. The options are those of `replacing`.

    First in memory: torch's writer, if an exception stops it, aborts the process when it is freed after its file.
    """
    whole = io.BytesIO()
    save(whole)
    with replacing(path, **options) as file:
        file.write(whole.getbuffer())


def write_text(path: Path, text: str, **options: str) -> None:
    """Write a small file. The options are those of `replacing`."""
    write_whole(path, lambda file: file.write(text.encode()), **options)


def write_figure(path: Path, figure: Any, *, dpi: int = 120, **options: Any) -> None:
    """Write a figure of matplotlib as PNG. The options are those of `savefig`. UserError if it cannot be written."""
    write_whole(path, lambda file: figure.savefig(file, dpi=dpi, format="png", **options),
                advice="make room, or make the folder writable, and draw again")


def flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, because only then are the renames in it safe too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
