"""Checkpoints that survive a crash and cannot run code.

Saving writes a temporary file, flushes it to the disk and only then renames it, so a kill at any moment leaves
a whole file under the name. The one before is kept too. Loading takes the newest one that is undamaged, and a
damaged one never takes the place of a good one: `torch.load` accepts flipped bits without a word, but a .pt file
is a zip, and a zip holds a checksum for every part. And `weights_only=True` everywhere: an ordinary pickle runs
whatever code its author put into it, this loads tensors and plain types only, so only these are saved.
"""
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..runtime.errors import UserError, reason

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def save(folder: Path, content: dict[str, Any]) -> None:
    """Write `content` as FOLDER/checkpoint.pt; the one that was there becomes checkpoint.previous.pt.

    content: tensors and plain types, nested. UserError if it cannot be written; what was there is then untouched.
    """
    # In memory first. An exception that leaves torch's writer before its end, such as the one for a dead loader, which
    # comes at any line, makes it write once more when it is freed; if its file is closed by then, the process aborts.
    whole = io.BytesIO()
    torch.save(content, whole)
    with replacing(folder / NEWEST, keep=folder / PREVIOUS) as file:
        file.write(whole.getbuffer())


def write_text(path: Path, text: str) -> None:
    """A small file, replaced as safely as a checkpoint."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A temporary file to write to; at the end it is flushed and takes `path`. keep: where the old file goes."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists() and not damage(path):         # else a damaged one would replace the last good one
            os.replace(path, keep)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise UserError(f"could not write {path} ({reason(error)}): is the disk full? The checkpoint before it "
                        "is intact; make room and go on with --resume") from error
    finally:
        with suppress(OSError):                                 # it is there no more if all went well
            temporary.unlink()


def flush_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> dict[str, Any]:
    """The content of one checkpoint, on CPU. UserError if it is missing, damaged, or no checkpoint of ours."""
    problem = damage(path)
    if problem:
        raise UserError(f"{path} cannot be read as a checkpoint: {problem}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                      # whatever a foreign file makes torch raise
        raise UserError(f"{path} cannot be read as a checkpoint: {reason(error)}") from error
    if not isinstance(content, dict) or "settings" not in content or "model" not in content:
        raise UserError(f"{path} is not a checkpoint of a run: it holds no settings and model")
    return content


def damage(path: Path) -> str | None:
    """What is wrong with the file, in a few words; None if each of its parts has the right checksum."""
    try:
        with zipfile.ZipFile(path) as parts:
            part = parts.testzip()                  # reads all of them
    except Exception as error:                      # zipfile raises many kinds for a file that is no zip any more
        return reason(error)
    return None if part is None else f"it is damaged, the checksum of {part} does not match"


def newest(folder: Path) -> dict[str, Any]:
    """The newest undamaged checkpoint in the folder; a damaged one is named on stderr. UserError if there is none."""
    problems = []
    for path in (folder / NEWEST, folder / PREVIOUS):
        if path.exists():
            try:
                content = read(path)
            except UserError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                print(f"warning: {problem}; going on from {path}", file=sys.stderr)
            return content
    raise UserError("; ".join(problems) or f"nothing to resume: {folder} holds no checkpoint")


def refuse_other_settings(saved: dict[str, Any], now: dict[str, Any], *, may_differ: tuple[str, ...] = ()) -> None:
    """UserError naming the first key whose value is not the checkpoint's."""
    for key in sorted(saved.keys() | now.keys()):
        if key not in may_differ and saved.get(key) != now.get(key):
            raise UserError(f"the run was started with {key} = {saved.get(key)!r}, now it is "
                            f"{now.get(key)!r}: give the same, or start a new run in another --out")


def read_config(run: Path) -> dict[str, Any]:
    """RUN/config.json. UserError if the folder holds no run."""
    try:
        return json.loads((run / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{run} holds no run: config.json is missing or damaged ({type(error).__name__})") from error
