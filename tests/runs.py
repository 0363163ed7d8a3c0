"""Runs of the real scripts, with faults put in, for the tests of what a run survives.

A run here is a forked child of the test process: a real process, which can be killed, without the seconds that a
new interpreter needs to import torch. Tests of signals and of `torchrun` also start the scripts from a shell.
"""
import argparse
import contextlib
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import matplotlib.backends.backend_agg  # noqa: F401  this and the scripts: imported once here, so that no child has to
import pytest
import torch
from PIL import Image

import train_cifar
import train_imagenet
from mpvg_minimal.data import sources
from mpvg_minimal.data.shapes import Shapes
from mpvg_minimal.runtime.errors import one_line_errors
from mpvg_minimal.training import checkpoint, task

TIMING = ("seconds", "images_per_second")           # all other metrics are the same in every run
SHAPES = ("train_cifar", "--dataset", "shapes", "--gap", "--mpvg", "--batch-size", 16, "--workers", 0)
FOLDER = ("train_imagenet", "--model", "vit_nano", "--image-size", 32, "--gap", "--mpvg", "--batch-size", 4,
          "--workers", 0)


class Child(NamedTuple):
    process: multiprocessing.Process
    out: TextIO
    err: TextIO
    began: float


class Ended(NamedTuple):
    code: int           # exit code; negative: the signal that killed it
    out: str
    err: str
    seconds: float


def in_child(function: Callable[[], Any], *, timeout: float = 60) -> Ended:
    return ended(fork(function), timeout)


def fork(function: Callable[[], Any], environment: dict[str, str] | None = None) -> Child:
    """Start `function` in a child, in which files take what is printed."""
    out, err = (tempfile.TemporaryFile("w+") for _ in range(2))

    def body():
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)            # nohup ignores it
        os.environ.update(environment or {})
        with one_line_errors():
            function()
    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return Child(process, out, err, time.monotonic())


def ended(child: Child, timeout: float = 60) -> Ended:
    """Wait for a child; one that is not through in time is killed and fails the test."""
    process, out, err, began = child
    while process.is_alive():                       # join(timeout) would wait for a killed run's image loaders too
        if time.monotonic() - began > timeout:
            process.kill()
            process.join()
            raise AssertionError(f"still running after {timeout} s: {text_of(out)}{text_of(err)}")
        time.sleep(0.01)
    return Ended(process.exitcode, text_of(out), text_of(err), time.monotonic() - began)


def one_line(end: Ended, *parts: str, code: int = 2) -> None:
    """The child ended with this exit code, and with one line on stderr that holds all parts."""
    assert end.code == code and end.err.count("\n") == 1 and end.err.startswith("error: "), end
    assert all(part in end.err for part in parts), end.err


def text_of(file) -> str:
    """What was written so far. Its position is shared with the child's processes, some of which may still write."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


@functools.cache
def small_shapes() -> sources.Source:
    """The built-in data set with 96 training and 40 test images."""
    train_set, test_set = Shapes("train", size=96), Shapes("test", size=40)
    return sources.Source(train_set, test_set, train_set.classes, 32, (0.25,) * 3, (0.25,) * 3)


def call(script: str, *flags: Any, fault: Callable[[], None] | None = None, curves: bool = False) -> Callable[[], None]:
    """script(flags) as a function without arguments. fault: called first, in the child.

    curves: whether a classifier's curves are drawn at the end, which takes longer than all the rest of a small run.
    """
    data = small_shapes()                           # drawn here, once for all children

    def function():
        sources.open_shapes = lambda: data
        if not curves:
            train_cifar.draw_curves = train_imagenet.draw_curves = lambda *_: None
        if fault:
            fault()
        sys.argv = [script if "." in script else f"{script}.py", *map(str, flags)]
        importlib.import_module(script).main()
    return function


def run(script: str, *flags: Any, timeout: float = 60, **options: Any) -> Ended:
    """call(script, *flags, **options) in a child."""
    return in_child(call(script, *flags, **options), timeout=timeout)


def run_ranks(script: str, *flags: Any, faults: tuple = (None, None), timeout: float = 60) -> list[Ended]:
    """The script in two processes that form a gloo group, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank, fault in enumerate(faults):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(faults), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port}
        children.append(fork(call(script, *flags, fault=fault), {key: str(value) for key, value in place.items()}))
    return [ended(child, timeout) for child in children]


def small_files(size: int) -> Callable[[], None]:
    """A fault: no file may grow over this many bytes, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def both(*faults: Callable[[], None] | None) -> Callable[[], None]:
    """One fault after the other; None is none."""
    return lambda: [fault() for fault in faults if fault]


def before(owner: Any, name: str, call_number: int | None, act: Callable[[], None], *,
           when: Callable[..., bool] = lambda *_, **__: True) -> Callable[[], None]:
    """A fault: `act` just before the given call, from 1, of owner.name; None: before each. `when` says which count."""
    def fault():
        original, calls = getattr(owner, name), itertools.count(1)

        def patched(*args, **options):
            if when(*args, **options) and call_number in (None, next(calls)):
                act()
            return original(*args, **options)
        setattr(owner, name, patched)
    return fault


def in_evaluation(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """A fault: `act` after the first batch of the given evaluation."""
    def fault():
        original, calls = task.evaluate_batches, itertools.count(1)

        def patched(*args, between, **options):
            pending = [act] if next(calls) == number else []

            def after_batch():
                if pending:
                    pending.pop()()
                between()
            return original(*args, between=after_batch, **options)
        task.evaluate_batches = patched
    return fault


def parsers_of(module: Any) -> list[argparse.ArgumentParser]:
    """A command's parsers, which hold its flags."""
    made, original = [], argparse.ArgumentParser.__init__

    def init(parser, *args, **options):
        original(parser, *args, **options)
        made.append(parser)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Exception, SystemExit):
        patch.setattr(argparse.ArgumentParser, "__init__", init)
        patch.setattr(sys, "argv", ["command", "--nosuch"])
        module.main()
    return made


def image_folder(root: Path, *, classes: tuple[str, ...] = ("ash", "birch"), train_images: int = 12,
                 val_images: int = 5, size: int = 40) -> Path:
    """A tiny data set in ImageNet's layout: noise, the same in every call."""
    g = torch.Generator().manual_seed(0)
    for split, count in (("train", train_images), ("val", val_images)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(256, (size, size, 3), generator=g, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.jpg")
    return root


def final(out: Path) -> dict[str, Any]:
    """All that a run's newest checkpoint holds, without the timings. metrics.jsonl says the same."""
    saved = checkpoint.read(out / checkpoint.NEWEST)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == saved["history"]
    for line in saved["history"]:
        for key in TIMING:
            del line[key]
    return saved


def difference(a: Any, b: Any, place: str = "") -> str | None:
    """Where two nested contents differ first, None if they are equal bit for bit."""
    if type(a) is not type(b):
        return f"{place}: {type(a)} and {type(b)}"
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return None if same else f"{place}: other values"
    if isinstance(a, dict):
        if list(a) != list(b):
            return f"{place}: keys {list(a)} and {list(b)}"
        return next(filter(None, (difference(a[key], b[key], f"{place}/{key}") for key in a)), None)
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{place}: {len(a)} and {len(b)} entries"
        return next(filter(None, (difference(x, y, f"{place}/{n}") for n, (x, y) in enumerate(zip(a, b)))), None)
    return None if a == b else f"{place}: {a!r} and {b!r}"
