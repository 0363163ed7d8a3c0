"""How all commands read their flags: a wrong one is one line."""
import argparse
import math
import os
import re
from pathlib import Path
from typing import Any

from ..runtime.errors import UserError

LARGEST_IMAGE = 65_535  # height and width in pixels: JPEG knows no larger one
MOST_PROCESSES = max(16, 4 * (os.cpu_count() or 1))     # that load images or train, on this machine
LARGEST = 10 ** 9       # whole numbers: no run has more epochs, images, steps or rounds


class Parser(argparse.ArgumentParser):
    """A wrong flag is a UserError, not a page of usage. doc: the module's, for --help; None under `python -OO`."""

    def __init__(self, doc: str | None = None, **options: Any):
        super().__init__(description=(doc or "").split("\n")[0], **options)

    def error(self, message: str) -> None:
        message = re.sub(r"\S{300,}", lambda word: short(word[0]), message)      # a value may be very long
        raise UserError(f"{message} ({self.prog} --help lists the flags)")


def number(kind: type, *, above: float = -math.inf, least: float = -math.inf, most: float | None = None,
           below: float = math.inf) -> Any:
    """A type for argparse: a finite int or float in bounds. An int is at most `LARGEST` if no bound is given."""
    most = most if most is not None else LARGEST if kind is int and below == math.inf else math.inf

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError as error:
            name = {int: "whole number", float: "number"}[kind]
            raise argparse.ArgumentTypeError(f"{short(text)} is no {name}") from error
        if not (above < value < below and least <= value <= most):
            bounds = {"above": above, "at least": least, "at most": most, "below": below}
            words = [f"{name} {bound}" for name, bound in bounds.items() if abs(bound) < math.inf]
            raise argparse.ArgumentTypeError(f"{short(text)} is out of range: it must be {' and '.join(words)}")
        return value
    return parse


def short(text: str) -> str:
    """Text of a user, to be repeated in an error."""
    return repr(text) if len(text) < 40 else f"{text[:30]!r}... ({len(text)} characters)"


def path(text: str) -> Path:
    """A type for argparse: the name of a file or a folder."""
    long = len(os.fsencode(text)) > 4000 or any(len(os.fsencode(part)) > 255 for part in Path(text).parts)
    why = "empty" if not text.strip() else "too long" if long else "holding a null byte" if "\0" in text else None
    if why:
        raise argparse.ArgumentTypeError(f"{short(text)} cannot be a file's name: it is {why}")
    return Path(text)
