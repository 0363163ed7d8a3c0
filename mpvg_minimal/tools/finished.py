"""A finished run as plots and export take it: its newest checkpoint, and the model in it."""
import importlib
from pathlib import Path
from typing import Any

from torch import nn

from ..dense.tasks import build_dense
from ..runtime.errors import UserError
from ..training import checkpoint
from ..training.models import build_model, load_model


def load(run: Path) -> tuple[dict[str, Any], nn.Module]:
    """The newest checkpoint's content, and its model in eval mode."""
    saved = checkpoint.newest(run)
    settings = saved["settings"]
    build = build_dense if "task" in settings else build_model
    if "cell" in settings:                                      # the tutorials are no part of an installed package
        try:
            build = importlib.import_module("tutorials.grid_cells").build
        except ImportError as error:
            raise UserError("this is a run of tutorials/grid.py: start in the folder that holds tutorials/") from error
    return saved, load_model(saved, build)
