"""Checkpoints that survive a crash and cannot run code.

Saving replaces the file in one step (runtime/files.py), so a kill at any moment leaves a whole checkpoint. The one
before is kept too. Loading takes the newest one that is undamaged, and a damaged one never replaces a good one:
`torch.load` accepts flipped bits without a word, but a .pt file is a zip, and a zip holds a checksum for every part.

Loading always uses `weights_only=True`. An ordinary pickle runs any code that its author put into it; with this flag
only tensors and plain types are loaded. So nothing else is saved.
"""
import math
import re
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runtime.errors import NonFinite, UserError, exhausted, reason
from ..runtime.files import write_whole

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def save(folder: Path, content: dict[str, Any]) -> None:
    """Write `content` as FOLDER/checkpoint.pt; the one that was there becomes checkpoint.previous.pt.

    content: tensors and plain types, nested. UserError if it cannot be written; what was there is then untouched.
    """
    newest, previous = folder / NEWEST, folder / PREVIOUS
    keep = None if newest.exists() and damage(newest) else previous     # a damaged one must not replace a good one
    write_whole(newest, lambda file: torch.save(content, file), keep=keep, advice="is the disk full? The checkpoint "
                "before it is intact; make room and go on with --resume")


def refuse_non_finite(models: list[nn.Module | None], history: list[dict[str, Any]], *, saved_at: str) -> None:
    """NonFinite if a weight, or a number in these metrics, is NaN or infinite.

    The last update of an epoch may spoil the weights, and no later loss of that epoch tells.
    """
    bad = [f"{name} of epoch {line['epoch']}" for line in history for name, value in line.items()
           if isinstance(value, float) and not math.isfinite(value)]
    weights = [tensor for model in models if model for tensor in model.state_dict().values()]
    if bad or not torch.stack([tensor.isfinite().all() for tensor in weights]).all():
        raise NonFinite(f"{bad[0] if bad else 'a weight'} is not finite any more", saved_at)


def read(path: Path) -> dict[str, Any]:
    """The content of one checkpoint, on the CPU. UserError if it is missing, damaged, or no checkpoint of a run."""
    if problem := damage(path):
        raise UserError(f"{path} cannot be read as a checkpoint: {problem}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                      # whatever a foreign file makes torch raise
        code = re.search(r"(?:GLOBAL|class) (\w+\.[\w.]+)", str(error))
        why = f"it holds code, not only tensors: do not load it ({code[1]})" if code else reason(error)
        raise UserError(f"{path} cannot be read as a checkpoint: {why}") from error
    if not all(isinstance(content, dict) and isinstance(content.get(key), dict) for key in ("settings", "model")):
        raise UserError(f"{path} is not a checkpoint of a run: it holds no settings and model")
    return content


def damage(path: Path) -> str | None:
    """What is wrong with the file, in a few words. None if every part of it has the right checksum."""
    try:
        if path.exists() and not path.is_file():        # opening a pipe would wait for ever
            return "it is no regular file"
        with zipfile.ZipFile(path) as parts:
            part = parts.testzip()                  # reads all of them
    except Exception as error:                      # zipfile raises many kinds for a file that is no zip any more
        return reason(error)
    return None if part is None else f"it is damaged, the checksum of {part} does not match"


def newest(folder: Path) -> dict[str, Any]:
    """The content of the newest undamaged checkpoint. A damaged one is named on stderr. UserError if there is none."""
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
    raise UserError("; ".join(problems) or f"{folder} holds no checkpoint")


def there(folder: Path) -> bool:
    """Whether the folder holds a checkpoint, damaged or not."""
    return any((folder / name).exists() for name in (NEWEST, PREVIOUS))


@contextmanager
def of_this_version():
    """Inside, a checkpoint's content is used. What does not fit is a UserError: another version made it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        if exhausted(error):
            raise
        raise UserError(f"the checkpoint does not fit this code ({reason(error)}): another version of it, or another "
                        "project, made the checkpoint; use the version that its config.json names, or train again"
                        ) from error
