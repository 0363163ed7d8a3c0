"""Another run's settings, on resume and on test: refused in one line that names the key and both values."""
import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from runs import FOLDER, SHAPES, final, one_line, run
from test_bad_flags import refused

from mpvg_minimal.runtime.errors import UserError
from mpvg_minimal.training import checkpoint, flags, recipes
from mpvg_minimal.training.folder import refuse_other_settings
from mpvg_minimal.training.run import start_run

RECIPE = asdict(recipes.SHAPES)
ONE = ("--epochs", 1)
EVALUATE = ("--workers", "0", "--eval")
FLAGS_OF_SETTINGS = {
    "model": ("--model", "vit_lite", "vit_nano", "vit_lite"), "pe": ("--pvg", None, "mpvg", "pvg"),
    "pe_init": ("--pe-init", "sincos2d", "learned", "sincos2d"), "batch_size": ("--batch-size", "8", 16, 8),
    "lr": ("--lr", "0.5", 0.001, 0.5), "ema": ("--ema", "0.5", 0.0, 0.5), "seed": ("--seed", "1", 0, 1),
    "limit": ("--limit", "32", None, 32), "loader": ("--loader", "device", "workers", "device")}


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("key", FLAGS_OF_SETTINGS)
def test_a_flag_that_differs_is_refused_before_data_is_opened(finished, key, capsys):
    flag, value, old, new = FLAGS_OF_SETTINGS[key]
    others = [part for part in SHAPES if not (key == "pe" and part == "--mpvg")]
    given = [flag] if value is None else [flag, value]
    line = refused(capsys, *others, *ONE, *given, "--out", finished / "shapes", "--resume")
    assert f"{key} = {old!r}, now it is {new!r}" in line


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("key", [key for key in RECIPE if key not in ("epochs", "accumulate", *FLAGS_OF_SETTINGS)])
def test_a_recipe_that_differs_is_refused(finished, key, capsys, monkeypatch):
    old = RECIPE[key]
    new = 2 * old if old else 0.25
    monkeypatch.setattr(recipes, "SHAPES", replace(recipes.SHAPES, **{key: new}))
    line = refused(capsys, *SHAPES, *ONE, "--out", finished / "shapes", "--resume")
    assert f"{key} = {old!r}, now it is {new!r}" in line


@pytest.mark.promise("mismatch")
def test_pooling_dataset_and_accumulation_too(finished, capsys):
    without = [part for part in SHAPES if part != "--gap"]
    line = refused(capsys, *without, *ONE, "--out", finished / "shapes", "--resume")
    assert "pool = 'gap', now it is 'cls'" in line
    for flag, value, said in (("--accumulate", 2, "accumulate = 1, now it is 2"),
                              ("--image-size", 64, "image_size = 32, now it is 64")):
        line = refused(capsys, *FOLDER, *ONE, flag, value, "--out", finished / "folder", "--resume")
        assert said in line


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("dtype, name", [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_another_precision_is_refused(finished, dtype, name, capsys, monkeypatch):
    """As a GPU would have it: the run was in float32, which is None."""
    monkeypatch.setattr(flags, "choose_amp", lambda *_: dtype)
    line = refused(capsys, *SHAPES, *ONE, "--out", finished / "shapes", "--resume")
    assert f"amp = None, now it is '{name}'" in line


KEYS = [*RECIPE, "pool", "pe", "pe_init", "amp", "limit", "loader", "dataset", "num_classes", "image_size",
        "train_images", "classes"]


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_checkpoint_is_compared(finished, key):
    """Without config.json, by the checkpoint itself."""
    saved = checkpoint.read(finished / "shapes" / "checkpoint.pt")["settings"]
    assert set(saved) == set(KEYS)
    other = saved | {key: "other" if key != "epochs" else 0}
    resumed = start_run(torch.nn.Linear(1, 1), recipes.SHAPES, out=finished / "shapes", device=torch.device("cpu"),
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
    shutil.copytree(finished / "shapes", tmp_path / "run")
    flags = (*SHAPES, "--out", tmp_path / "run", "--resume", "--epochs")
    end = run(*flags, 2)
    assert end.code == 0 and "started for 1 epochs, now it goes on to 2" in end.out
    grown = final(tmp_path / "run")
    assert [line["epoch"] for line in grown["history"]] == [1, 2]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["epochs"] == 2
    one_line(run(*flags, 1), "for 2 epochs, got --epochs 1: on resume it may only grow")
    assert final(tmp_path / "run")["epoch"] == 2


def change_folder(root, change: str) -> None:
    for split in ("train", "val"):
        if change == "class":
            (root / split / "birch").rename(root / split / "beech")
        elif change == "more classes":
            shutil.copytree(root / split / "birch", root / split / "cedar")
    if change == "image":
        (root / "train" / "birch" / "0.jpg").unlink()


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("use, change, key", [
    ("resume", "class", "classes"), ("resume", "image", "train_images"),        # with the same number of classes
    ("eval", "class", "classes"), ("eval", "more classes", "classes")])
def test_another_folder_of_images_is_refused(finished, tmp_path, use, change, key):
    shutil.copytree(finished / "folder", tmp_path / "run")
    shutil.copytree(finished / "data", tmp_path / "data")
    change_folder(tmp_path / "data", change)
    flags = {"resume": (*FOLDER, *ONE, "--out", tmp_path / "run", "--resume"),
             "eval": ("train_imagenet", *EVALUATE, tmp_path / "run" / "checkpoint.pt")}[use]
    one_line(run(*flags, "--data-dir", tmp_path / "data"), f"with {key} = ", ", now it is ")


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("flags, said", [
    (("--model", "deit_tiny"), "model = 'vit_nano', now it is 'deit_tiny'"),
    (("--pvg",), "pe = 'mpvg', now it is 'pvg'"),
    (("--pe-init", "sincos2d"), "pe_init = 'learned', now it is 'sincos2d'"),
    (("--image-size", "64"), "image_size = 32, now it is 64")])
def test_eval_with_another_model_is_refused_before_data_is_opened(finished, flags, said, capsys):
    assert said in refused(capsys, "train_imagenet", *flags, *EVALUATE, finished / "folder" / "checkpoint.pt")


@pytest.mark.promise("mismatch")
def test_eval_of_another_data_set_or_pooling_is_refused(finished, capsys, tmp_path):
    line = refused(capsys, "train_imagenet", *EVALUATE, finished / "shapes" / "checkpoint.pt")
    assert "dataset = 'shapes', now it is 'imagenet'" in line
    saved = checkpoint.read(finished / "folder" / "checkpoint.pt")
    checkpoint.save(tmp_path, saved | {"settings": saved["settings"] | {"pool": "cls"}})
    line = refused(capsys, "train_imagenet", "--gap", *EVALUATE, tmp_path / "checkpoint.pt")
    assert "pool = 'cls', now it is 'gap'" in line


@pytest.mark.promise("mismatch")
def test_eval_of_the_right_checkpoint(finished):
    tested = run("train_imagenet", "--data-dir", finished / "data", "--gap", "--mpvg", *EVALUATE,
                 finished / "folder" / "checkpoint.pt")
    assert tested.code == 0, tested.err
    top1 = final(finished / "folder")["history"][-1]["top1"]
    assert f"test accuracy: {top1:.2f} %" in tested.out.splitlines()
