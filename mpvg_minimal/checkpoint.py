"""Checkpoints that survive a crash and cannot run code.

Saving writes a temporary file, flushes it to the disk and only then renames it, so a kill at any moment leaves
a whole file under the name. The one before is kept too. Loading takes the newest one that is undamaged:
`torch.load` accepts flipped bits without a word, but a .pt file is a zip, and a zip holds a checksum for every
part. And `weights_only=True` everywhere: an ordinary pickle runs whatever code its author put into it, this
loads tensors and plain types only, so only these are saved.
"""
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from .errors import UserError

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def save(folder: Path, content: dict[str, Any]) -> None:
    """Write `content` as FOLDER/checkpoint.pt; the one that was there becomes checkpoint.previous.pt.

    content: tensors and plain types, nested. UserError if it cannot be written; what was there is then untouched.
    """
    newest, temporary = folder / NEWEST, folder / f"{NEWEST}.tmp"
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if newest.exists():
            os.replace(newest, folder / PREVIOUS)
        os.replace(temporary, newest)
        flush_folder(folder)
    except (OSError, RuntimeError) as error:        # a full disk is an OSError or, from torch.save, a RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(f"could not write {newest} ({reason(error)}): is the disk full? The checkpoint before it "
                        "is intact; make room and go on with --resume") from error


def flush_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> dict[str, Any]:
    """The content of one checkpoint, on CPU. UserError if it is missing, damaged, or no checkpoint of ours."""
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()               # reads every part and compares its checksum
        if damaged is not None:
            raise UserError(f"{path} is damaged: the checksum of {damaged} does not match")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:                      # whatever a damaged or a foreign file makes zip and torch raise
        raise UserError(f"{path} cannot be read as a checkpoint ({reason(error)})") from error
    if not isinstance(content, dict) or "settings" not in content or "model" not in content:
        raise UserError(f"{path} is not a checkpoint of a run: it holds no settings and model")
    return content


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


def reason(error: Exception) -> str:
    """An exception in a few words: its type and the first line of what it says."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:120]}"


def refuse_other_settings(saved: dict[str, Any], now: dict[str, Any], *, may_differ: tuple[str, ...] = ()) -> None:
    """UserError naming the first key whose value is not the checkpoint's."""
    for key in sorted(saved.keys() | now.keys()):
        if key not in may_differ and saved.get(key) != now.get(key):
            raise UserError(f"the checkpoint was made with {key} = {saved.get(key)!r}, but this run has "
                            f"{now.get(key)!r}: give the same, or start a new run in another --out")
