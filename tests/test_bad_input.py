"""Wrong flags, wrong data and another run's settings: one line that says what is wrong, and exit code 2."""
import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from conftest import ROOT
from PIL import Image
from runs import difference, final, image_folder, run, small_shapes

import train_cifar
import train_imagenet
from mpvg_minimal.data import batches, sources
from mpvg_minimal.runtime import distributed
from mpvg_minimal.runtime.errors import UserError, one_line_errors
from mpvg_minimal.training import checkpoint, flags, recipes
from mpvg_minimal.training.folder import refuse_other_settings
from mpvg_minimal.training.run import start_run

SCRIPTS = {"train_cifar": train_cifar, "train_imagenet": train_imagenet}
SHAPES = ("train_cifar", "--dataset", "shapes", "--gap", "--mpvg", "--batch-size", "16", "--workers", "0")
FOLDER = ("train_imagenet", "--model", "vit_nano", "--image-size", "32", "--gap", "--mpvg", "--batch-size", "4",
          "--epochs", "1")


def one_line(capsys, script: str, *flags) -> str:
    """main() in this process; it must end with exit code 2 and one line on stderr, which is returned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, flags)])
        with pytest.raises(SystemExit) as end, one_line_errors():
            SCRIPTS[script].main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.fixture
def nothing_is_built(monkeypatch):
    """Opening data or building a model fails the test."""
    def too_late(*_, **__):
        raise AssertionError("data was opened or a model built before the flags were refused")
    monkeypatch.setattr(sources, "open_source", too_late)
    for script in SCRIPTS.values():
        for name in ("build_model", "start_run", "make_batches"):
            monkeypatch.setattr(script, name, too_late)


# Flags: what is wrong for each. A flag without an entry here fails test_every_flag_has_a_case.

WHOLE = ["-1", "0", "abc", "1.5", "", "nan", "1e3", "9" * 12, "9" * 400, "9" * 5000]
WHOLE_OR_ZERO = [value for value in WHOLE if value != "0"]
NAMES = ["", "\0", "x" * 300, "y/" * 3000, None]
CASES = {
    "--data-dir": NAMES, "--model": ["vit_huge", "", None], "--gap": ["=1"], "--mpvg": ["=1"], "--pvg": ["=1"],
    "--lape": ["=1"], "--no-pe": ["=1"], "--pe-init": ["zeros", "", None], "--epochs": [*WHOLE, None],
    "--batch-size": [*WHOLE, None], "--lr": ["-1", "0", "abc", "", "nan", "inf", None],
    "--ema": ["-0.1", "1", "1.5", "abc", "", "nan", None],
    "--seed": [*(value for value in WHOLE_OR_ZERO if value != "9" * 12), str(2 ** 63), None],
    "--limit": [*WHOLE, None], "--loader": ["gpu", None],
    "--workers": [*WHOLE_OR_ZERO, None],
    "--device": ["cuda", "cuda:0", "cpu:1", "meta", "gpu", "", "-1", None], "--amp": ["bf16", "fp16", "int8", None],
    "--compile": ["=1", "max-autotune", "reduce-overhead"],
    "--save-every": ["-1", "abc", "", "nan", "inf", None], "--out": NAMES, "--resume": ["=1"],
    "--dataset": ["mnist", None],
    "--image-size": [*WHOLE, None], "--accumulate": [*WHOLE, None], "--eval": ["nosuch.pt", *NAMES],
    "--init": ["nosuch.pt", *NAMES], "--cache": NAMES,
}


def flags_of(script: str) -> list[str]:
    class Found(Exception):
        pass

    def stop(parser, *_):
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        SCRIPTS[script].main()
    actions = found.value.args[0]._actions
    return [action.option_strings[-1] for action in actions if not isinstance(action, argparse._HelpAction)]


FLAGS = [(script, flag) for script in SCRIPTS for flag in flags_of(script)]


@pytest.mark.promise("bad flags")
def test_every_flag_has_a_case():
    assert {flag for _, flag in FLAGS} == set(CASES)
    assert len(FLAGS) > 35


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("script, flag, value", [(*place, value) for place in FLAGS for value in CASES[place[1]]])
def test_a_wrong_value_is_refused(script, flag, value, nothing_is_built, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    given = [flag] if value is None else [flag + value] if value.startswith("=") else [flag, value]
    out = [] if flag in ("--out", "--eval") else ["--out", tmp_path / "out"]
    line = one_line(capsys, script, *out, *given)
    assert ("cannot be read as a checkpoint" if value == "nosuch.pt" else flag) in line


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", [("--nosuch",), ("--mpvg", "--pvg"), ("--no-pe", "--lape"), ("stray",)])
def test_unknown_and_contradicting_flags(script, flags, nothing_is_built, capsys):
    assert flags[-1] in one_line(capsys, script, *flags)


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("size", ["30", "4"])
def test_an_image_size_that_the_patch_does_not_divide(size, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "open_source", lambda *_: pytest.fail("too late"))
    flags = ("--model", "vit_nano", "--image-size", size, "--out", tmp_path)
    assert f"patch size 8 does not divide image size ({size}, {size})" in one_line(capsys, "train_imagenet", *flags)


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("file", ["config.json", "checkpoint.pt", "checkpoint.previous.pt"])
def test_an_out_that_holds_another_run(script, file, nothing_is_built, capsys, tmp_path):
    (tmp_path / file).write_text("{}")
    assert "holds a run already: --resume" in one_line(capsys, script, "--out", tmp_path)


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("place", ["file", "file/below", "forbidden"])
def test_an_out_that_cannot_be_written(script, place, nothing_is_built, capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    if place == "forbidden":                        # root may write everywhere, so the refusal is put in
        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")
        monkeypatch.setattr(type(tmp_path), "touch", refuse)
    line = one_line(capsys, script, "--out", tmp_path / place)
    assert f"--out {tmp_path / place} cannot be written" in line


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("flags", [("train_imagenet",), ("train_cifar", "--dataset", "cifar10"),
                                   ("train_cifar", "--dataset", "cifar100")])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_data_dir_that_cannot_be(flags, place, capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for script in SCRIPTS.values():
        monkeypatch.setattr(script, "build_model", lambda *_: pytest.fail("too late"))
    line = one_line(capsys, *flags, "--data-dir", tmp_path / place, "--out", tmp_path / "out")
    assert str(tmp_path / place) in line


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("command", [
    ["train_cifar.py", "--epochs", "-1"], ["train_imagenet.py", "--data-dir", "nosuch", "--out", "OUT"]])
def test_as_processes(command, tmp_path):
    command = [str(tmp_path / "out") if part == "OUT" else part for part in command]
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith("error: ")


# Data: each case damages a good folder and says what the line must name.

def truncated(root):
    path = root / "train" / "birch" / "3.jpg"
    path.write_bytes(path.read_bytes()[:400])
    return [str(path), "cannot be read as an image"]


def empty(root):
    path = root / "train" / "ash" / "0.jpg"
    path.write_bytes(b"")
    return [str(path), "cannot be read as an image"]


def text_in_disguise(root):
    path = root / "train" / "ash" / "notes.png"
    path.write_text("no image\n" * 100)
    return [str(path), "cannot be read as an image"]


def bad_test_image(root):
    path = root / "val" / "ash" / "2.jpg"
    path.write_bytes(b"\xff\xd8\xff" + bytes(100))
    return [str(path), "cannot be read as an image"]


def sixteen_bits(root):
    path = root / "train" / "ash" / "0.jpg"
    Image.fromarray(torch.full((40, 40), 40_000, dtype=torch.int32).numpy().astype("uint16")).save(path, "PNG")
    return [str(path), "more than 8 bits", "mode I;16"]


def pipe(root):
    path = root / "val" / "ash" / "2.jpg"
    path.unlink()
    os.mkfifo(path)
    return [str(path), "not a regular file"]


def stray_in_a_class(root):
    path = root / "train" / "ash" / "labels.csv"
    path.write_text("")
    return [str(path), "does not have the name of an image"]


def stray_beside_the_classes(root):
    path = root / "val" / "lost.jpg"
    shutil.copy(root / "val" / "ash" / "0.jpg", path)
    return [str(path), "is in no class"]


def empty_class(root):
    for split in ("train", "val"):
        (root / split / "cedar").mkdir()
    return [str(root), "cedar"]


def other_classes(root):
    (root / "val" / "birch").rename(root / "val" / "beech")
    return [str(root), "different classes", "beech"]


def class_in_train_alone(root):
    shutil.copytree(root / "train" / "ash", root / "train" / "cedar")
    return [str(root), "different classes", "cedar"]


def no_classes(root):
    for path in list((root / "val").rglob("*.jpg")):
        path.rename(root / "val" / f"{path.parent.name}_{path.name}")
    for path in list((root / "val").iterdir()):
        if path.is_dir():
            path.rmdir()
    return [str(root), "Expected", "val/CLASS/*.jpg"]


def no_val(root):
    shutil.rmtree(root / "val")
    return [str(root), "Expected", "val/CLASS/*.jpg"]


def file_for_folder(root):
    shutil.rmtree(root / "train")
    (root / "train").write_text("")
    return [str(root), "Expected", "train/CLASS/*.jpg"]


FOUND_WHEN_READ = [truncated, empty, text_in_disguise, bad_test_image, sixteen_bits, pipe]
FOUND_WHEN_OPENED = [stray_in_a_class, stray_beside_the_classes, empty_class, other_classes, class_in_train_alone,
                     no_classes, no_val, file_for_folder]


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("damage, workers", [*[(damage, workers) for damage in FOUND_WHEN_READ for workers in (0, 2)],
                                             *[(damage, 0) for damage in FOUND_WHEN_OPENED]])
def test_bad_data_is_named(tmp_path, damage, workers):
    root = image_folder(tmp_path / "data")
    named = damage(root)
    ended = run(*FOLDER, "--workers", workers, "--data-dir", root, "--out", tmp_path / "out", timeout=30)
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("error: ") and "Traceback" not in ended.err
    assert all(part in ended.err for part in named), ended.err


@pytest.mark.promise("bad data")
def test_names_that_are_not_utf8_are_no_trouble(tmp_path):
    """As old archives have them: the class's name is in the checkpoint, and compared on resume."""
    root = image_folder(tmp_path / "data")
    for split in (b"train", b"val"):
        os.rename(os.path.join(os.fsencode(root), split, b"ash"), os.path.join(os.fsencode(root), split, b"\xe4sh"))
    flags = (*FOLDER, "--workers", "0", "--data-dir", root, "--out", tmp_path / "out")
    assert [(ended.code, ended.err) for ended in (run(*flags), run(*flags, "--resume"))] == [(0, "")] * 2
    bad = os.path.join(os.fsencode(root), b"train", b"\xe4sh", b"0.jpg")
    with open(bad, "wb"):
        pass
    ended = run(*flags[:-1], tmp_path / "again")
    assert ended.code == 2 and ended.err.startswith(f"error: {root}/train/\\udce4sh/0.jpg cannot be read as an image")


@pytest.mark.promise("bad data")
def test_hidden_files_and_a_good_folder_are_no_trouble(tmp_path):
    root = image_folder(tmp_path / "data")
    (root / "train" / "ash" / ".DS_Store").write_text("")
    (root / "train" / "ash" / "._0.jpg").write_text("")
    Image.new("L", (50, 70)).save(root / "train" / "ash" / "grey.png")      # grey and of another size: made to fit
    ended = run(*FOLDER, "--workers", "0", "--data-dir", root, "--out", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    assert checkpoint.read(tmp_path / "out" / "checkpoint.pt")["settings"]["train_images"] == 25


class Odd(torch.utils.data.Dataset):
    """Images of the shapes' size and labels in range, but for number 5."""

    classes = small_shapes().classes

    def __init__(self, image=None, label=None):
        self.image, self.label = image, label

    def __len__(self):
        return 32

    def __getitem__(self, index):
        image, label = small_shapes().train[index]
        if index == 5:
            image, label = image if self.image is None else self.image, label if self.label is None else self.label
        return image, label


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("loader", [("--workers", 0), ("--workers", 2), ("--loader", "device")])
@pytest.mark.parametrize("odd, named", [
    (dict(label=16), "image 5 has the label 16, expected 0 to 15"),
    (dict(label=-1), "image 5 has the label -1, expected 0 to 15"),
    (dict(image=torch.zeros(3, 28, 32, dtype=torch.uint8)), "image 5 is of shape (3, 28, 32), expected (3, 32, 32)"),
    (dict(image=torch.zeros(1, 32, 32, dtype=torch.uint8)), "image 5 is of shape (1, 32, 32), expected (3, 32, 32)")])
def test_labels_and_sizes(tmp_path, odd, named, loader):
    def fault():
        sources.open_shapes = lambda: small_shapes()._replace(train=Odd(**odd))
    ended = run(*SHAPES[:-2], *loader, "--out", tmp_path, fault=fault, timeout=30)
    assert ended.code == 2 and ended.err == f"error: {named}\n"


@pytest.mark.promise("bad data")
def test_a_file_is_named_behind_limit(tmp_path):
    """--limit takes some of the images: the number in the line, if any, must still lead to the file."""
    root = image_folder(tmp_path / "data")
    subset = sources.limit_dataset(sources.open_imagenet(root, 32).train, 8)
    file = sources.open_imagenet(root, 32).train.samples[18][0]
    assert len(subset) == 8 and subset.indices[6] == 18
    with open(file, "wb"):
        pass                                        # empty now
    batches.EpochDataset(subset, None, 0)[0, 5]
    with pytest.raises(UserError, match=file):
        batches.EpochDataset(subset, None, 0)[0, 6]


# Another run's settings.

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on shapes, one on a folder, and the folder."""
    base = tmp_path_factory.mktemp("finished")
    image_folder(base / "data")
    assert run(*SHAPES, "--epochs", "1", "--out", base / "shapes").code == 0
    folder = run(*FOLDER, "--workers", "0", "--data-dir", base / "data", "--out", base / "folder")
    assert folder.code == 0
    return base, folder


FLAGS_OF_SETTINGS = {
    "model": ("--model", "vit_lite", "vit_nano", "vit_lite"), "pe": ("--pvg", None, "mpvg", "pvg"),
    "pe_init": ("--pe-init", "sincos2d", "learned", "sincos2d"), "batch_size": ("--batch-size", "8", 16, 8),
    "lr": ("--lr", "0.5", 0.001, 0.5), "ema": ("--ema", "0.5", 0.0, 0.5), "seed": ("--seed", "1", 0, 1),
    "limit": ("--limit", "32", None, 32), "loader": ("--loader", "device", "workers", "device")}


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("key", FLAGS_OF_SETTINGS)
def test_a_flag_that_differs_is_refused_before_data_is_opened(finished, key, nothing_is_built, capsys):
    flag, value, old, new = FLAGS_OF_SETTINGS[key]
    base, _ = finished
    flags = [part for part in SHAPES[1:] if not (key == "pe" and part == "--mpvg")]
    given = [flag] if value is None else [flag, value]
    line = one_line(capsys, "train_cifar", *flags, "--epochs", "1", *given, "--out", base / "shapes", "--resume")
    assert f"{key} = {old!r}, now it is {new!r}" in line


RECIPE = asdict(recipes.SHAPES)


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("key", [key for key in RECIPE if key not in ("epochs", "accumulate", *FLAGS_OF_SETTINGS)])
def test_a_recipe_that_differs_is_refused(finished, key, nothing_is_built, capsys, monkeypatch):
    base, _ = finished
    old = getattr(recipes.SHAPES, key)
    new = 2 * old if old else 0.25
    monkeypatch.setattr(recipes, "SHAPES", replace(recipes.SHAPES, **{key: new}))
    line = one_line(capsys, *SHAPES, "--epochs", "1", "--out", base / "shapes", "--resume")
    assert f"{key} = {old!r}, now it is {new!r}" in line


@pytest.mark.promise("mismatch")
def test_pooling_dataset_and_accumulation_too(finished, nothing_is_built, capsys):
    base, _ = finished
    flags = [part for part in SHAPES[1:] if part != "--gap"]
    line = one_line(capsys, "train_cifar", *flags, "--epochs", "1", "--out", base / "shapes", "--resume")
    assert "pool = 'gap', now it is 'cls'" in line
    line = one_line(capsys, *FOLDER, "--accumulate", "2", "--out", base / "folder", "--resume")
    assert "accumulate = 1, now it is 2" in line
    line = one_line(capsys, *FOLDER, "--image-size", "64", "--out", base / "folder", "--resume")
    assert "image_size = 32, now it is 64" in line


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("dtype, name", [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_another_precision_is_refused(finished, dtype, name, nothing_is_built, capsys, monkeypatch):
    """As a GPU would have it: the run was in float32, which is None."""
    base, _ = finished
    monkeypatch.setattr(flags, "choose_amp", lambda *_: dtype)
    line = one_line(capsys, *SHAPES, "--epochs", "1", "--out", base / "shapes", "--resume")
    assert f"amp = None, now it is '{name}'" in line


KEYS = [*RECIPE, "pool", "pe", "pe_init", "amp", "limit", "loader", "dataset", "num_classes", "image_size",
        "train_images", "classes"]


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_checkpoint_is_compared(finished, key):
    """Without config.json, by the checkpoint itself."""
    base, _ = finished
    saved = checkpoint.read(base / "shapes" / "checkpoint.pt")["settings"]
    assert set(saved) == set(KEYS)
    other = saved | {key: "other" if key != "epochs" else 0}
    resumed = start_run(torch.nn.Linear(1, 1), recipes.SHAPES, out=base / "shapes", device=torch.device("cpu"),
                        settings=other)
    message = f"{key} = {saved[key]!r}, now it is 'other'" if key != "epochs" else "for 1 epochs, got --epochs 0"
    with pytest.raises(UserError) as error:
        resumed.load()
    assert message in str(error.value)
    missing = {name: value for name, value in saved.items() if name != key}
    if saved[key] is not None and key != "epochs":
        with pytest.raises(UserError, match=key):
            refuse_other_settings(missing, saved, may_differ=("epochs",))


@pytest.mark.promise("mismatch")
def test_epochs_may_grow_but_not_shrink(finished, tmp_path):
    base, _ = finished
    shutil.copytree(base / "shapes", tmp_path / "run")
    assert run(*SHAPES, "--epochs", "2", "--out", tmp_path / "run", "--resume").code == 0
    assert [line["epoch"] for line in final(tmp_path / "run")["history"]] == [1, 2]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["epochs"] == 2
    shrunk = run(*SHAPES, "--epochs", "1", "--out", tmp_path / "run", "--resume")
    assert shrunk.code == 2 and "for 2 epochs, got --epochs 1: on resume it may only grow" in shrunk.err
    assert difference(final(tmp_path / "run"), final(tmp_path / "run")) is None


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("change, key", [("class", "classes"), ("image", "train_images")])
def test_another_folder_of_images_is_refused_on_resume(finished, tmp_path, change, key):
    """With the same number of classes."""
    base, _ = finished
    shutil.copytree(base / "folder", tmp_path / "run")
    shutil.copytree(base / "data", tmp_path / "data")
    change_folder(tmp_path / "data", change)
    flags = (*FOLDER, "--workers", "0", "--data-dir", tmp_path / "data", "--out", tmp_path / "run", "--resume")
    refused = run(*flags)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert f"the run was started with {key} = " in refused.err and ", now it is " in refused.err


def change_folder(root, change: str) -> None:
    if change == "class":
        for split in ("train", "val"):
            (root / split / "birch").rename(root / split / "beech")
    elif change == "more classes":
        for split in ("train", "val"):
            shutil.copytree(root / split / "birch", root / split / "cedar")
    else:
        (root / "train" / "birch" / "0.jpg").unlink()


EVALUATE = ("--workers", "0", "--eval")


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("flags, said", [
    (("--model", "deit_tiny"), "model = 'vit_nano', now it is 'deit_tiny'"),
    (("--pvg",), "pe = 'mpvg', now it is 'pvg'"),
    (("--pe-init", "sincos2d"), "pe_init = 'learned', now it is 'sincos2d'"),
    (("--image-size", "64"), "image_size = 32, now it is 64")])
def test_eval_with_another_model_is_refused_before_data_is_opened(finished, flags, said, nothing_is_built, capsys):
    base, _ = finished
    path = base / "folder" / "checkpoint.pt"
    assert said in one_line(capsys, "train_imagenet", *flags, *EVALUATE, path)


@pytest.mark.promise("mismatch")
def test_eval_of_another_data_set_or_pooling_is_refused(finished, nothing_is_built, capsys, tmp_path):
    base, _ = finished
    line = one_line(capsys, "train_imagenet", *EVALUATE, base / "shapes" / "checkpoint.pt")
    assert "dataset = 'shapes', now it is 'imagenet'" in line
    saved = checkpoint.read(base / "folder" / "checkpoint.pt")
    checkpoint.save(tmp_path, saved | {"settings": saved["settings"] | {"pool": "cls"}})
    line = one_line(capsys, "train_imagenet", "--gap", *EVALUATE, tmp_path / "checkpoint.pt")
    assert "pool = 'cls', now it is 'gap'" in line


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("change, key", [("class", "classes"), ("more classes", "classes")])
def test_eval_with_other_classes_is_refused(finished, tmp_path, change, key):
    base, _ = finished
    shutil.copytree(base / "data", tmp_path / "data")
    change_folder(tmp_path / "data", change)
    flags = ("--data-dir", tmp_path / "data", *EVALUATE, base / "folder" / "checkpoint.pt")
    refused = run("train_imagenet", *flags)
    assert refused.code == 2 and refused.err.count("\n") == 1 and f"with {key} = " in refused.err


@pytest.mark.promise("mismatch")
def test_eval_of_the_right_checkpoint(finished):
    base, trained = finished
    flags = ("--data-dir", base / "data", "--gap", "--mpvg", *EVALUATE, base / "folder" / "checkpoint.pt")
    tested = run("train_imagenet", *flags)
    assert tested.code == 0, tested.err
    line = next(line for line in tested.out.splitlines() if line.startswith("test accuracy"))
    assert line in trained.out.splitlines()


@pytest.mark.promise("bad flags")
def test_one_process_more_than_gpus(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="process 3 of this machine has no GPU, there are 2"):
        distributed.join(torch.device("cuda"))


@pytest.mark.promise("bad flags")
def test_a_mistake_of_ours_stays_a_traceback(tmp_path):
    """One line is for users' mistakes: anything else must not be hidden."""
    def fault():
        train_cifar.start_run = lambda *_, **__: 1 / 0
    ended = run(*SHAPES, "--out", tmp_path, fault=fault)
    assert ended.code == 1 and "Traceback" in ended.err and "ZeroDivisionError" in ended.err
