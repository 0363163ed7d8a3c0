"""Both scripts as a user runs them: as processes, on small data in the real layouts."""
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import urllib.error

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from runs import run_ranks

from mpvg_minimal.data import sources

SCRIPT = {name: str(ROOT / f"train_{name}.py") for name in ("cifar", "imagenet")}


def run(*command, expect=0, **options):
    """The finished process; its output is shown if the exit code is another than expected."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=env, timeout=240,
                          **options)
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def write_cifar10(folder, images_per_batch=20):
    """Six batch files and batches.meta, as in the archive."""
    random = np.random.default_rng(0)
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        pixels = random.integers(0, 256, (images_per_batch, 3072), dtype=np.uint8)
        labels = random.integers(0, 10, images_per_batch).tolist()
        (base / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}))


def write_folder(folder, classes=("cat", "dog", "owl"), train=12, val=5):
    """train/CLASS/*.jpg and val/CLASS/*.jpg of different sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(36, 60, 2)
                pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("imagenet")
    write_folder(path)
    return path


def driver(path, script, *preparation):
    """A file that runs a script after some preparation in the same process."""
    path.write_text("\n".join(["import runpy", *preparation, f"runpy.run_path({script!r}, run_name='__main__')"]))
    return path


SMALL = ["--model", "vit_nano", "--image-size", "32", "--epochs", "2", "--batch-size", "12", "--workers", "0"]


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_shapes_from_nothing_to_pictures(tmp_path):
    out = tmp_path / "run"
    flags = ["--gap", "--mpvg", "--dataset", "shapes", "--limit", "384", "--epochs", "2", "--out", out]
    done = run(SCRIPT["cifar"], *flags)
    assert {"config.json", "metrics.jsonl", "checkpoint.pt", "curves.png"} <= {path.name for path in out.iterdir()}
    lines = metrics(out)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert set(lines[0]) == {"epoch", "train_loss", "train_top1", "test_loss", "top1", "lr", "images_per_second",
                             "seconds"}
    assert done.stdout.splitlines()[-1] == f"test accuracy: {lines[-1]['top1']:.2f} %"
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["pool"] == "gap" and config["settings"]["pe"] == "mpvg"
    assert config["environment"]["torch"] == torch.__version__
    assert done.stdout.splitlines()[0] == f"training on {config['environment']['device']}, in torch.float32"

    drawn = run("-m", "mpvg_minimal.tools.plots", out, "--images", "64")
    rows = {line[:10].strip(): line[10:].split() for line in drawn.stdout.splitlines()[:-1]}
    assert rows["block 1"][:4] == ["–"] * 4 and len(rows["last norm"]) == 6
    assert -1 <= float(rows["last norm"][0]) <= 1 and float(rows["last norm"][5]) > 0.01        # p is random: 1 / N
    assert "before and after the last norm: 0." in drawn.stdout
    with Image.open(out / "counterbalance.png") as picture:
        assert len(picture.convert("L").getcolors(256)) > 50            # heatmaps, not an empty page
    again = run(SCRIPT["cifar"], *flags, expect=2)
    assert again.stderr.startswith("error: ") and "--resume" in again.stderr and again.stderr.count("\n") == 1


def test_cifar10_in_its_real_layout(tmp_path):
    write_cifar10(tmp_path / "data")
    checksums_off = ["from torchvision.datasets import CIFAR10 as C",
                     "C.train_list = [[name, None] for name, _ in C.train_list]",
                     "C.test_list = [[name, None] for name, _ in C.test_list]", "C.meta = C.meta | {'md5': None}"]
    script = driver(tmp_path / "driver.py", SCRIPT["cifar"], *checksums_off)
    run(script, "--gap", "--mpvg", "--data-dir", tmp_path / "data", "--epochs", "1", "--batch-size", "20",
        "--out", tmp_path / "run", "--workers", "0")
    config = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (config["model"], config["num_classes"], config["mixup"]) == ("vit_lite", 10, 0.8)
    weights = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    assert sum(w.numel() for w in weights.values()) == 3_719_946


def test_a_folder_of_images_trains_and_its_checkpoint_tests_the_same(tmp_path, folder):
    out = tmp_path / "run"
    done = run(SCRIPT["imagenet"], "--gap", "--mpvg", "--data-dir", folder, "--out", out, "--accumulate", "2", *SMALL)
    tested = run(SCRIPT["imagenet"], "--data-dir", folder, "--eval", out / "checkpoint.pt", "--workers", "0")
    last = metrics(out)[-1]
    assert done.stdout.splitlines()[-1] == tested.stdout.splitlines()[-1] == f"test accuracy: {last['top1']:.2f} %"
    assert f"test loss: {last['test_loss']:.4f}" in tested.stdout


def test_two_processes_give_one_processs_result(tmp_path, folder):
    """Without what each process draws by itself: mixing, stochastic depth. 15 test images, so uneven shares.

    In float64, since AdamW divides by small gradients and makes float32's rounding visible.
    """
    exact = ["import dataclasses, torch", "from mpvg_minimal.data import sources",
             "from mpvg_minimal.training import recipes",
             "plain = dict(mixup=0.0, cutmix=0.0, stochastic_depth=0.0)",
             "recipes.IMAGENET = dataclasses.replace(recipes.IMAGENET, **plain)",
             "torch.set_default_dtype(torch.float64)",
             "sources.normalize = lambda images, mean, std: (images.double() / 255 - mean) / std"]
    script = driver(tmp_path / "driver.py", SCRIPT["imagenet"], *exact)
    flags = ["--gap", "--mpvg", "--data-dir", folder, *SMALL, "--ema", "0.9"]
    run(script, *flags, "--out", tmp_path / "one")
    run("-m", "torch.distributed.run", "--nproc-per-node", "2", script, *flags, "--out", tmp_path / "two")
    one, two = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two"))
    for part in ("model", "ema"):
        for name, weights in one[part].items():
            torch.testing.assert_close(two[part][name], weights, rtol=1e-6, atol=1e-9,
                                       msg=lambda m, n=name: f"{n}: {m}")
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
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

    flags = ("--data-dir", tmp_path / "data", "--epochs", 1, "--batch-size", 50, "--model", "vit_nano", "--workers", 0)
    ends = run_ranks("train_cifar", *flags, "--out", tmp_path / "run", faults=(slow_download,) * 2)
    assert [end.code for end in ends] == [0, 0], ends
    assert (tmp_path / "log").read_text() == "download\n"


def test_a_download_that_fails_in_one_process_ends_all_with_its_message(tmp_path):
    def refuse(self):
        raise urllib.error.URLError("no network in this test")

    def first():
        sources.datasets.CIFAR10.download = refuse

    def second():
        sources.datasets.CIFAR10.download = lambda self: os._exit(9)              # it must not come so far

    ends = run_ranks("train_cifar", "--data-dir", tmp_path, "--out", tmp_path / "run", faults=(first, second))
    for end in ends:
        assert (end.code, end.err.count("\n")) == (2, 1) and "no network in this test" in end.err, end


def test_cifar_that_cannot_be_had_is_one_line_with_both_ways_on(tmp_path):
    offline = ["import urllib.error, urllib.request", "def urlopen(*_, **__):",
               "    raise urllib.error.URLError('no network in this test')", "urllib.request.urlopen = urlopen"]
    script = driver(tmp_path / "driver.py", SCRIPT["cifar"], *offline)
    done = run(script, "--data-dir", tmp_path / "none", "--out", tmp_path / "run", expect=2)
    assert done.stderr.count("\n") == 1
    assert "cifar-10-python.tar.gz" in done.stderr and "--dataset shapes" in done.stderr
