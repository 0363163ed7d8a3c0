"""Both scripts as a user runs them, on small data in the real layouts."""
import json
import os
import pickle
import shutil
import time
import urllib.error
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import image_folder, run, run_ranks

from mpvg_minimal.data import sources
from mpvg_minimal.training import checkpoint, recipes

CIFAR10 = ("train_cifar", "--gap", "--mpvg", "--epochs", 1, "--batch-size", 20, "--workers", 0)
FOLDER = ("train_imagenet", "--gap", "--mpvg", "--model", "vit_nano", "--image-size", 32, "--epochs", 2,
          "--batch-size", 12, "--workers", 0)


def done(script, *flags, **options):
    """What a run that must end well has printed."""
    ended = run(script, *flags, timeout=240, **options)
    assert ended.code == 0, ended
    return ended.out.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("imagenet"), classes=("cat", "dog", "owl"))


def write_cifar10(folder, images_per_batch=8):
    """Six batch files and batches.meta, as in the archive."""
    random = np.random.default_rng(0)
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        pixels = random.integers(0, 256, (images_per_batch, 3072), dtype=np.uint8)
        labels = random.integers(0, 10, images_per_batch).tolist()
        (base / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}))


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_shapes_from_nothing_to_pictures(tmp_path):
    out = tmp_path / "run"
    flags = ("train_cifar", "--gap", "--mpvg", "--dataset", "shapes", "--batch-size", 32, "--epochs", 2, "--out", out)
    printed = done(*flags, curves=True)
    assert {"config.json", "metrics.jsonl", "checkpoint.pt", "curves.png"} <= {path.name for path in out.iterdir()}
    lines = metrics(out)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert set(lines[0]) == {"epoch", "train_loss", "train_top1", "test_loss", "top1", "lr", "images_per_second",
                             "seconds"}
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["pool"] == "gap" and config["settings"]["pe"] == "mpvg"
    assert config["environment"]["torch"] == torch.__version__
    assert printed[0] == f"training on {config['environment']['device']}, in torch.float32"
    assert printed[-1] == f"test accuracy: {lines[-1]['top1']:.2f} %"

    drawn = done("mpvg_minimal.tools.plots", out, "--images", 40)
    rows = {line[:10].strip(): line[10:].split() for line in drawn[:-1]}
    assert rows["block 1"][:4] == ["–"] * 4 and len(rows["last norm"]) == 6
    assert -1 <= float(rows["last norm"][0]) <= 1 and float(rows["last norm"][5]) > 0.01        # p is random: 1 / N
    assert any("before and after the last norm: 0." in line for line in drawn)
    with Image.open(out / "counterbalance.png") as picture:
        assert len(picture.convert("L").getcolors(256)) > 50            # heatmaps, not an empty page


def test_cifar10_in_its_real_layout(tmp_path):
    write_cifar10(tmp_path / "data")

    def no_checksums():
        kind = sources.datasets.CIFAR10
        for name in ("train_list", "test_list"):
            setattr(kind, name, [[file, None] for file, _ in getattr(kind, name)])
        kind.meta = kind.meta | {"md5": None}
    done(*CIFAR10, "--data-dir", tmp_path / "data", "--out", tmp_path / "run", fault=no_checksums)
    saved = checkpoint.newest(tmp_path / "run")
    assert [saved["settings"][key] for key in ("model", "num_classes", "mixup")] == ["vit_lite", 10, 0.8]
    assert sum(weight.numel() for weight in saved["model"].values()) == 3_719_946


def test_a_folder_of_images_trains_and_its_checkpoint_tests_the_same(tmp_path, folder):
    printed = done(*FOLDER, "--data-dir", folder, "--out", tmp_path, "--accumulate", 2)
    tested = done("train_imagenet", "--data-dir", folder, "--eval", tmp_path / "checkpoint.pt", "--workers", 0)
    last = metrics(tmp_path)[-1]
    assert printed[-1] == f"test accuracy: {last['top1']:.2f} %"
    assert tested == [f"test loss: {last['test_loss']:.4f}", printed[-1]]


def test_two_processes_give_one_processs_result(tmp_path, folder):
    """Without what each process draws by itself: mixing, stochastic depth. 15 test images, so uneven shares.

    In float64, since AdamW divides by small gradients and makes float32's rounding visible.
    """
    def exact():
        recipes.IMAGENET = replace(recipes.IMAGENET, mixup=0.0, cutmix=0.0, stochastic_depth=0.0)
        torch.set_default_dtype(torch.float64)
    flags = (*FOLDER, "--data-dir", folder, "--ema", 0.9, "--out")
    done(*flags, tmp_path / "one", fault=exact)
    ends = run_ranks(*flags, tmp_path / "two", faults=(exact, exact), timeout=240)
    assert [end.code for end in ends] == [0, 0], ends
    one, two = (checkpoint.newest(tmp_path / name) for name in ("one", "two"))
    for part in ("model", "ema"):
        torch.testing.assert_close(two[part], one[part], rtol=1e-6, atol=1e-9)
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["top1"] == b["top1"] and a["train_top1"] == b["train_top1"]        # counts are exact
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-9)
        assert a["test_loss"] == pytest.approx(b["test_loss"], rel=1e-7)            # summed from float32 logits


def test_only_one_of_two_processes_downloads(tmp_path):
    """The second one finds the files whole: it neither fetches them nor reads them half written."""
    write_cifar10(tmp_path / "there")

    def slow_download():
        def download(self):
            place, log = tmp_path / "data" / self.base_folder, tmp_path / "log"
            if not place.exists():
                with log.open("a") as file:
                    file.write("download\n")
                time.sleep(1)
                shutil.copytree(tmp_path / "there" / self.base_folder, place)
        sources.datasets.CIFAR10.download = download
        sources.datasets.CIFAR10._check_integrity = sources.datasets.CIFAR10._load_meta = lambda self: True
        sources.datasets.CIFAR10.classes = list("0123456789")

    flags = (*CIFAR10, "--model", "vit_nano", "--data-dir", tmp_path / "data", "--out", tmp_path / "run")
    ends = run_ranks(*flags, faults=(slow_download,) * 2, timeout=240)
    assert [end.code for end in ends] == [0, 0], ends
    assert (tmp_path / "log").read_text() == "download\n"


def test_a_download_that_fails_in_one_process_ends_all_with_both_ways_on(tmp_path):
    def no_network():
        def urlopen(*_, **__):
            raise urllib.error.URLError("no network in this test")
        urllib.request.urlopen = urlopen

    def second():
        sources.datasets.CIFAR10.download = lambda self: os._exit(9)              # it must not come so far

    ends = run_ranks(*CIFAR10, "--data-dir", tmp_path, "--out", tmp_path / "run", faults=(no_network, second))
    for end in ends:
        assert (end.code, end.err.count("\n")) == (2, 1) and "no network in this test" in end.err, end
        assert "cifar-10-python.tar.gz" in end.err and "--dataset shapes" in end.err
