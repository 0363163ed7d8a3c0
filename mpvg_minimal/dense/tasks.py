"""Both dense tasks by name, and the models of their runs."""
from pathlib import Path
from typing import Any

from ..training import checkpoint
from ..training.models import build_model, load_model
from .detection import DETECTION, Detector
from .segmentation import SEGMENTATION, Segmenter

TASKS = {"segmentation": SEGMENTATION, "detection": DETECTION}


def build_dense(settings: dict[str, Any]) -> Segmenter | Detector:
    """The model that a run's settings name, with fresh weights that depend on the seed alone."""
    vit = build_model(settings)
    if settings["task"] == "segmentation":
        return Segmenter(vit, settings["num_classes"])
    return Detector(vit, settings["num_classes"], **settings["detector"])


def load_dense(run: Path) -> tuple[Segmenter | Detector, dict[str, Any]]:
    """The newest model of a dense run, in eval mode, and the run's settings."""
    saved = checkpoint.newest(run)
    return load_model(saved, build_dense), saved["settings"]
