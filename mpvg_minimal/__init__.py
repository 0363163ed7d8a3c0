"""MPVG, step by step. Read in this order: patch_embed, layerwise_pe, block, balance, vit, fold; then train and run.

Symbols in all files: B images in a batch, N tokens, D width, H heads (of an image: height), L blocks, K classes.
"""
import sys
from pathlib import Path

if sys.argv[:1] == ["-m"] or sys.path[:1] == [str(Path(__file__).parents[1])]:
    # This is a program of ours, and importing torch takes seconds: Ctrl-C meanwhile is one line.
    def _one_line(kind, error, trace, usual=sys.excepthook):
        if issubclass(kind, KeyboardInterrupt):
            print("error: interrupted, nothing was done", file=sys.stderr)
        else:
            usual(kind, error, trace)
    sys.excepthook = _one_line

from .balance import counterbalance
from .fold import fold_last_pe
from .layerwise_pe import LayerwisePE, PESchedule
from .vit import ViT, deit_base, deit_nano, deit_small, deit_tiny, resize_pe, vit_lite, vit_nano

__all__ = ["LayerwisePE", "PESchedule", "ViT", "counterbalance", "deit_base", "deit_nano", "deit_small",
           "deit_tiny", "fold_last_pe", "resize_pe", "vit_lite", "vit_nano"]
