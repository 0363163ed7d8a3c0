"""One way to write a file: all of it or nothing.

The content goes into a temporary file beside the real one, which is renamed only when it is complete. A rename is
atomic, so a kill at any moment leaves either the old file or the new one, and never a part of one.
"""
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import UserError, reason


@contextmanager
def replacing(path: Path, *, keep: Path | None = None, many: bool = False,
              advice: str = "is the disk full?") -> Iterator[BinaryIO]:
    """A temporary file to write to. At the end it is flushed to the disk and takes the name `path`; folders are made.

    keep: the name that the old file gets, if there is one; None: the old file is replaced.
    many: for one of very many files that can be made again. It is not flushed, and several processes may write it.
    UserError if the file cannot be written; it ends with the advice. The old file is then untouched.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp" if many else f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            if not many:
                file.flush()
                os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        if not many:
            flush_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({reason(error)}): {advice}") from error
    finally:
        with suppress(OSError):                                 # after the rename it does not exist any more
            temporary.unlink()


def write_text(path: Path, text: str, **options: str) -> None:
    """Write a small file. The options are those of `replacing`."""
    with replacing(path, **options) as file:
        file.write(text.encode())


def flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, because only then are the renames in it safe too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
