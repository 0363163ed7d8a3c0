"""Wrong data: one line that names the file or folder, and exit code 2."""
import os
import shutil

import pytest
import torch
from PIL import Image
from runs import FOLDER, SHAPES, image_folder, one_line, run, small_shapes

from mpvg_minimal.data import batches, sources
from mpvg_minimal.runtime.errors import UserError
from mpvg_minimal.training import checkpoint

SPLITS = ("train", "val")
UNREADABLE = "cannot be read as an image"


def no_classes(root):
    for path in list((root / "val").rglob("*.jpg")):
        path.rename(root / "val" / f"{path.parent.name}_{path.name}")
    for name in ("ash", "birch"):
        (root / "val" / name).rmdir()


def file_for_folder(root):
    shutil.rmtree(root / "train")
    (root / "train").write_text("")


# A file or folder, what is done to it, and what the line says besides its name.
FOUND_WHEN_READ = {
    "truncated": ("train/birch/3.jpg", lambda file: file.write_bytes(file.read_bytes()[:400]), UNREADABLE),
    "empty": ("train/ash/0.jpg", lambda file: file.write_bytes(b""), UNREADABLE),
    "text in disguise": ("train/ash/notes.png", lambda file: file.write_text("no image\n" * 100), UNREADABLE),
    "test image": ("val/ash/2.jpg", lambda file: file.write_bytes(b"\xff\xd8\xff" + bytes(100)), UNREADABLE),
    "16 bits": ("train/ash/0.jpg", lambda file: Image.new("I;16", (40, 40), 40_000).save(file, "PNG"),
                "more than 8 bits", "mode I;16"),
    "pipe": ("val/ash/2.jpg", lambda file: (file.unlink(), os.mkfifo(file)), "not a regular file"),
}
FOUND_WHEN_OPENED = {
    "stray in a class": ("train/ash/labels.csv", lambda file: file.touch(), "does not have the name of an image"),
    "stray beside the classes": ("val/lost.jpg", lambda file: shutil.copy(file.parent / "ash/0.jpg", file),
                                 "is in no class"),
    "empty class": ("", lambda root: [(root / split / "cedar").mkdir() for split in SPLITS], "cedar"),
    "other classes": ("", lambda root: (root / "val/birch").rename(root / "val/beech"), "different classes", "beech"),
    "class in train alone": ("", lambda root: shutil.copytree(root / "train/ash", root / "train/cedar"),
                             "different classes", "cedar"),
    "no classes": ("", no_classes, "Expected", "val/CLASS/*.jpg"),
    "no val": ("", lambda root: shutil.rmtree(root / "val"), "Expected", "val/CLASS/*.jpg"),
    "file for folder": ("", file_for_folder, "Expected", "train/CLASS/*.jpg"),
}


def folder_run(root, out, *flags):
    return run(*FOLDER, "--epochs", 1, "--data-dir", root, "--out", out, *flags, timeout=30)


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("name, workers", [*[(name, workers) for name in FOUND_WHEN_READ for workers in (0, 2)],
                                           *[(name, 0) for name in FOUND_WHEN_OPENED]])
def test_bad_data_is_named(tmp_path, name, workers):
    root = image_folder(tmp_path / "data")
    place, damage, *parts = (FOUND_WHEN_READ | FOUND_WHEN_OPENED)[name]
    damage(root / place)
    one_line(folder_run(root, tmp_path / "out", "--workers", workers), str(root / place), *parts)


@pytest.mark.promise("bad data")
def test_names_that_are_not_utf8_are_no_trouble(tmp_path):
    """As old archives have them: the class's name is in the checkpoint, and compared on resume."""
    root = image_folder(tmp_path / "data")
    for split in map(os.fsencode, SPLITS):
        os.rename(os.path.join(os.fsencode(root), split, b"ash"), os.path.join(os.fsencode(root), split, b"\xe4sh"))
    for flags in ((), ("--resume",)):
        end = folder_run(root, tmp_path / "out", *flags)
        assert (end.code, end.err) == (0, "")
    open(os.path.join(os.fsencode(root), b"train", b"\xe4sh", b"0.jpg"), "wb").close()
    one_line(folder_run(root, tmp_path / "again"), f"error: {root}/train/\\udce4sh/0.jpg {UNREADABLE}")


@pytest.mark.promise("bad data")
def test_hidden_files_and_a_good_folder_are_no_trouble(tmp_path):
    root = image_folder(tmp_path / "data")
    (root / "train/ash/.DS_Store").touch()
    (root / "train/ash/._0.jpg").touch()
    Image.new("L", (50, 70)).save(root / "train/ash/gray.png")              # gray and of another size: made to fit
    end = folder_run(root, tmp_path / "out")
    assert (end.code, end.err) == (0, "")
    assert checkpoint.read(tmp_path / "out" / "checkpoint.pt")["settings"]["train_images"] == 25


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("loader", [("--workers", 0), ("--workers", 2), ("--loader", "device")])
@pytest.mark.parametrize("odd, named", [
    (dict(label=16), "image 5 has the label 16, expected 0 to 15"),
    (dict(label=-1), "image 5 has the label -1, expected 0 to 15"),
    (dict(image=torch.zeros(3, 28, 32, dtype=torch.uint8)), "image 5 is of shape (3, 28, 32), expected (3, 32, 32)"),
    (dict(image=torch.zeros(1, 32, 32, dtype=torch.uint8)), "image 5 is of shape (1, 32, 32), expected (3, 32, 32)")])
def test_labels_and_sizes(tmp_path, odd, named, loader):
    def fault():
        pairs = [small_shapes().train[number] for number in range(32)]
        pairs[5] = odd.get("image", pairs[5][0]), odd.get("label", pairs[5][1])
        sources.open_shapes = lambda: small_shapes()._replace(train=pairs)
    end = run(*SHAPES[:-2], *loader, "--out", tmp_path, fault=fault, timeout=30)
    assert end.code == 2 and end.err == f"error: {named}\n"


@pytest.mark.promise("bad data")
def test_a_file_is_named_behind_limit(tmp_path):
    """--limit takes some of the images: the number in the line, if any, must still lead to the file."""
    root = image_folder(tmp_path / "data")
    subset = sources.limit_dataset(sources.open_imagenet(root, 32).train, 8)
    file = sources.open_imagenet(root, 32).train.samples[18][0]
    assert len(subset) == 8 and subset.indices[6] == 18
    open(file, "wb").close()                        # empty now
    batches.EpochDataset(subset, None, 0)[0, 5]
    with pytest.raises(UserError, match=file):
        batches.EpochDataset(subset, None, 0)[0, 6]
