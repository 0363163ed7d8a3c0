"""Both dense tasks by name, and the models of their runs."""
from typing import Any

from ..training.models import build_model
from .detection import DETECTION, Detector
from .segmentation import SEGMENTATION, Segmenter

TASKS = {"segmentation": SEGMENTATION, "detection": DETECTION}


def build_dense(settings: dict[str, Any]) -> Segmenter | Detector:
    """The model that a run's settings name, with fresh weights that depend on the seed alone."""
    vit = build_model(settings)
    if settings["task"] == "segmentation":
        return Segmenter(vit, settings["num_classes"])
    return Detector(vit, settings["num_classes"], **settings["detector"])
