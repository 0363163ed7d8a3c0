"""Batches, augmentation, CIFAR and folders of images. Broken folders, as a run meets them: test_bad_data.py."""
import hashlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import difference, image_folder
from torchvision import datasets
from torchvision.transforms import v2

from mpvg_minimal.data.batches import Batches
from mpvg_minimal.data.images import read_rgb
from mpvg_minimal.data.loading import choose_workers, normalizer
from mpvg_minimal.data.sources import Source, augmentation, limit_dataset, mixing, open_source, plain
from mpvg_minimal.runtime import distributed
from mpvg_minimal.runtime.errors import UserError

AUGMENT = dict(scale=[0.3, 1.0], rand_augment=9, erasing=0.5)
PIXELS = np.random.default_rng(0).integers(0, 256, (21, 24, 24, 3), dtype=np.uint8)
# The label of an image is its index, so that a batch tells what it holds.
PICTURES = [(Image.fromarray(pixels), index) for index, pixels in enumerate(PIXELS)]
SOURCE = Source(PICTURES, PICTURES, [str(index) for index in range(21)], 16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def batches(transform=None, *, batch_size: int = 4, train: bool = True, **options) -> Batches:
    transform = augmentation(SOURCE, **AUGMENT) if transform == "augmented" else v2.PILToTensor()
    return Batches(PICTURES, transform, batch_size=batch_size, train=train, **options)


def order(of: Batches, epoch: int = 0, start: int = 0) -> list[list[int]]:
    return [labels.tolist() for _, labels in of.epoch(epoch, start)]


# Order and shares

def test_an_epoch_is_a_shuffle_into_whole_batches():
    epoch = order(batches())
    assert [len(batch) for batch in epoch] == [4] * 5 and len(batches()) == 5
    assert len(set(sum(epoch, []))) == 20 and sum(epoch, []) != sorted(sum(epoch, []))


def test_order_depends_on_seed_and_epoch_alone():
    used, expected = batches(seed=3), order(batches(seed=3), epoch=2)
    order(used, 0)
    torch.rand(5)
    assert order(used, 2) == expected and order(used, 2, start=3) == expected[3:]
    assert len({str(order(batches(seed=seed), epoch)) for seed in range(3) for epoch in range(4)}) == 12
    assert sorted(sum(order(batches(seed=3, batch_size=20), 2), [])) == sorted(sum(expected, []))


@pytest.mark.parametrize("world", [2, 4])
def test_shares_together_are_the_step_of_one_process(world):
    whole = order(batches(batch_size=8), 1)
    shares = [order(batches(batch_size=8, rank=rank, world=world), 1) for rank in range(world)]
    assert {len(batch) for share in shares for batch in share} == {8 // world}
    assert [sorted(sum(step, [])) for step in zip(*shares)] == [sorted(batch) for batch in whole]


@pytest.mark.parametrize("batch_size, world", [(8, 1), (8, 2), (8, 3), (5, 3), (4, 2), (30, 2), (20, 3)])
def test_test_shares_cover_every_image_once(batch_size, world):
    """21 images: the last batch is smaller, and may leave a process with nothing."""
    parts = [batches(batch_size=batch_size, train=False, rank=rank, world=world) for rank in range(world)]
    shares = [order(part) for part in parts]
    assert sorted(sum(sum(shares, []), [])) == list(range(21))
    assert {len(part) for part in parts} == {-(-21 // batch_size)}
    assert all(len(part) - len(share) in (0, 1) for part, share in zip(parts, shares))


def test_testing_is_in_order():
    part = batches(train=False)
    assert order(part) == order(part, 7) == [list(range(first, min(first + 4, 21))) for first in range(0, 21, 4)]
    images = torch.cat([images for images, _ in part.epoch()])
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1), PIXELS)


@pytest.mark.parametrize("options, why", [
    (dict(batch_size=22), "21 training images are fewer than one batch of 22.*--batch-size"),
    (dict(batch_size=8, world=3), "batch size 8 cannot be shared by 3 processes")])
def test_batches_without_sense_are_refused(options, why):
    with pytest.raises(UserError, match=why):
        batches(**options)
    batches(**options, train=False)                             # in testing both are fine


# Augmentation

def test_images_do_not_depend_on_the_workers():
    """One process or two, the first epoch or a later one of workers that persist, from the start or resumed."""
    alone, workers = batches("augmented"), batches("augmented", workers=2)
    torch.manual_seed(9)
    for epoch in (0, 1, 4):
        torch.rand(3)
        before = torch.get_rng_state()
        expected = list(alone.epoch(epoch))
        assert len(expected) == 5 and difference(list(workers.epoch(epoch)), expected) is None
        assert difference(list(workers.epoch(epoch, start=3)), expected[3:]) is None
        assert torch.equal(torch.get_rng_state(), before)       # the global generator is left alone
    next(workers.epoch(5))                                      # left in the middle, with batches under way
    assert difference(list(workers.epoch(0)), list(batches("augmented").epoch(0))) is None


def test_an_image_depends_on_seed_epoch_and_index_alone():
    def images(epoch=0, **options):
        return {int(label): image for batch in batches("augmented", **options).epoch(epoch)
                for image, label in zip(*batch)}

    expected = images()
    for other in (images(batch_size=7), images(batch_size=10, rank=1, world=2)):
        assert all(torch.equal(image, expected[index]) for index, image in other.items() if index in expected)
    for other in (images(epoch=1), images(seed=1)):
        assert not any(torch.equal(image, expected[index]) for index, image in other.items() if index in expected)


@pytest.mark.parametrize("size", [(16, 16), (70, 30), (5, 9)])
def test_augmented_images_are_uint8_of_the_right_size(size):
    image = augmentation(SOURCE, **AUGMENT)(Image.new("RGB", size, (200, 10, 90)))
    assert image.shape == (3, 16, 16) and image.dtype == torch.uint8


def test_rand_augment_is_27_of_31():
    """timm's 9 of 10: nine tenths of the way to the strongest, for instance 27 of 30 degrees."""
    steps = augmentation(SOURCE, **AUGMENT).transforms
    twice = [step for step in steps if isinstance(step, v2.RandomApply)]
    assert [(step.p, len(step.transforms)) for step in twice] == [(0.5, 1), (0.5, 1)]
    for (operation,) in (step.transforms for step in twice):
        assert isinstance(operation, v2.RandAugment)
        assert (operation.num_ops, operation.magnitude, operation.num_magnitude_bins) == (1, 27, 31)
        degrees, _ = operation._AUGMENTATION_SPACE["Rotate"]
        assert degrees(operation.num_magnitude_bins, 16, 16)[operation.magnitude].item() == pytest.approx(27)


def test_erased_pixels_get_the_mean_color():
    """At magnitude 0 no operation changes a black image, so what is not black was erased."""
    def augmented(erasing):
        transform = augmentation(SOURCE, scale=[1.0, 1.0], rand_augment=0, erasing=erasing)
        return torch.stack([transform(Image.new("RGB", (16, 16))) for _ in range(40)])

    assert augmented(0.0).eq(0).all()
    erased = augmented(1.0).ne(0).any(1)
    assert erased.flatten(1).any(1).all() and 0.02 < erased.double().mean() < 0.4
    color = torch.tensor([128, 102, 76], dtype=torch.uint8)                     # 255 times (0.5, 0.4, 0.3)
    assert (augmented(1.0).permute(0, 2, 3, 1).flatten(0, 2).unique(dim=0) == torch.stack([0 * color, color])).all()
    assert 5 < augmented(0.5).ne(0).flatten(1).any(1).sum() < 35


def test_crop_and_flip_happen():
    image = Image.fromarray(np.arange(24, dtype=np.uint8)[None, :, None].repeat(24, 0).repeat(3, 2) * 10)
    transform = augmentation(SOURCE, scale=[0.3, 0.3], rand_augment=0, erasing=0.0)
    rows = torch.stack([transform(image) for _ in range(60)])[:, 0, 8].int()
    steps = rows[:, -1] - rows[:, 0]
    assert 15 < (steps < 0).sum() < 45                                          # flipped
    assert 90 < steps.abs().median() < 160                                      # a part of 0 ... 230


# From uint8 to what the model gets

def test_normalize_as_numpy():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    result = normalizer(SOURCE._replace(mean=mean, std=std), torch.device("cpu"))(images)
    expected = (images.numpy().transpose(0, 2, 3, 1) / 255.0 - mean) / std
    np.testing.assert_allclose(result.numpy().transpose(0, 2, 3, 1), expected, atol=1e-5)
    assert result.dtype == torch.float32


def test_mixup_and_cutmix_take_turns_and_mix_targets_as_images():
    """Image number i is i everywhere and of class i, so its mean pixel afterwards is the mean of the classes."""
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 10, 10)

    def kinds(seed, **alphas):
        torch.manual_seed(seed)
        mix, found = mixing(6, **alphas), []
        for _ in range(100):
            mixed, targets = mix(images, torch.arange(6))
            torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(6.0), rtol=0, atol=1e-5)
            torch.testing.assert_close(targets.sum(1), torch.ones(6))
            found.append("cutmix" if (mixed % 1 == 0).all() else "mixup")
        return found

    both = dict(mixup=0.8, cutmix=1.0)
    assert 30 < kinds(1, **both).count("cutmix") < 70 and kinds(1, **both) == kinds(1, **both) != kinds(2, **both)
    assert set(kinds(1, mixup=0.8, cutmix=0.0)) == {"mixup"} and set(kinds(1, mixup=0.0, cutmix=1.0)) == {"cutmix"}
    assert mixing(6, mixup=0.0, cutmix=0.0) is None


# CIFAR

def write_cifar(folder: Path, monkeypatch, kind=datasets.CIFAR10) -> dict[str, dict]:
    """The files of CIFAR-10 or CIFAR-100 in their layout, with few images, and their checksums told to torchvision."""
    rng, label = np.random.default_rng(0), {"CIFAR10": "labels", "CIFAR100": "fine_labels"}[kind.__name__]
    names = [name for name, _ in kind.train_list + kind.test_list]
    contents = {name: {"data": rng.integers(0, 256, (9, 3072), dtype=np.uint8),         # red, green, blue, row by row
                       label: rng.integers(0, 10, 9).tolist()} for name in names}
    contents[kind.meta["filename"]] = {kind.meta["key"]: [f"class {number}" for number in range(10)]}
    (folder / kind.base_folder).mkdir(parents=True)
    sums = {}
    for name, content in contents.items():
        stored = pickle.dumps(content, protocol=2)
        (folder / kind.base_folder / name).write_bytes(stored)
        sums[name] = hashlib.md5(stored).hexdigest()
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(kind, attribute, [[name, sums[name]] for name, _ in getattr(kind, attribute)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    return contents


@pytest.fixture
def no_network(monkeypatch) -> list:
    """Every attempt to open an address fails, and is listed."""
    attempts = []

    def refuse(request, *_, **__):
        attempts.append(getattr(request, "full_url", request))
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return attempts


@pytest.mark.parametrize("name, kind, key", [("cifar10", datasets.CIFAR10, "labels"),
                                             ("cifar100", datasets.CIFAR100, "fine_labels")])
def test_cifar_is_read_as_it_is_stored(tmp_path, monkeypatch, no_network, name, kind, key):
    contents = write_cifar(tmp_path, monkeypatch, kind)
    source = open_source(name, str(tmp_path))
    assert (source.image_size, no_network) == (32, []) and source.classes == [f"class {n}" for n in range(10)]
    assert len(source.mean) == len(source.std) == 3
    for dataset, files in ((source.train, kind.train_list), (source.test, kind.test_list)):
        read = list(Batches(dataset, plain(source), batch_size=7, train=False).epoch())
        pixels = np.concatenate([contents[file]["data"] for file, _ in files]).reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(torch.cat([images for images, _ in read]), pixels)
        assert torch.cat([labels for _, labels in read]).tolist() == sum((contents[file][key] for file, _ in files), [])


@pytest.mark.parametrize("name, archive", [("cifar10", "cifar-10-python.tar.gz"),
                                           ("cifar100", "cifar-100-python.tar.gz")])
def test_missing_cifar_without_network_names_both_ways_on(tmp_path, no_network, name, archive):
    with pytest.raises(UserError, match=f"no network here.*put {archive} into .*--dataset shapes") as caught:
        open_source(name, str(tmp_path / "data"))
    assert str(tmp_path / "data") in str(caught.value) and len(no_network) >= 1


def test_the_archive_is_enough(tmp_path, monkeypatch, no_network):
    """What the error advises works."""
    contents = write_cifar(tmp_path / "elsewhere", monkeypatch)
    data_dir, archive = tmp_path / "data", tmp_path / "data" / "cifar-10-python.tar.gz"
    data_dir.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "elsewhere" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    source = open_source("cifar10", str(data_dir))
    assert source.train.targets[:9] == contents["data_batch_1"]["labels"] and no_network == []


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_cifar_is_refused(tmp_path, monkeypatch, no_network, file):
    write_cifar(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="cifar10 is not complete in .*--dataset shapes"):
        open_source("cifar10", str(tmp_path))


def test_a_download_that_brings_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(datasets.utils, "_urlretrieve", lambda _url, path, **_: Path(path).write_bytes(b"<html>"))
    with pytest.raises(UserError, match="cifar10 is not complete .*put cifar-10-python.tar.gz"):
        open_source("cifar10", str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet"])
@pytest.mark.parametrize("data_dir, why", [("", "--data-dir '' is no name"), ("a\0b", r"--data-dir 'a\\x00b' is"),
                                           ("x" * 300, "too long"), ("\udcff\udcfe", "\udcff\udcfe")])
def test_a_name_that_no_folder_can_have_is_refused(name, data_dir, why, no_network, tmp_path, monkeypatch):
    """Empty: not the current folder, for instance where the shell's variable is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=why):
        open_source(name, data_dir)


# ImageNet

def test_imagenet_is_folders_of_classes(tmp_path):
    source = open_source("imagenet", str(image_folder(tmp_path)), 32)
    assert (source.classes, source.image_size, len(source.train), len(source.test)) == (["ash", "birch"], 32, 24, 10)
    assert (source.mean, source.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert [label for _, label in source.train] == [0] * 12 + [1] * 12


@pytest.mark.parametrize("width, height", [(60, 40), (41, 90), (37, 37)])
def test_testing_resizes_and_crops_the_center(tmp_path, width, height):
    """The shorter side becomes 8/7 of the image size, 256 for 224 and 37 for 32."""
    source = open_source("imagenet", str(image_folder(tmp_path)), 32)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    wide, high = (37 * side // min(width, height) for side in (width, height))
    resized = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC))
    left, top = round((wide - 32) / 2), round((high - 32) / 2)
    np.testing.assert_array_equal(plain(source)(image).permute(1, 2, 0), resized[top:top + 32, left:left + 32])
    standard = plain(open_source("imagenet", str(tmp_path)))
    assert standard(image).shape == (3, 224, 224) and standard.transforms[0].size == [256]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_every_kind_of_image_becomes_three_channels(tmp_path, mode):
    Image.new("RGB", (50, 40), (255, 255, 255)).convert(mode).save(tmp_path / "0.png")
    pixels = np.asarray(read_rgb(tmp_path / "0.png"))
    assert pixels.shape == (40, 50, 3) and (pixels == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP"])
def test_every_format_that_a_name_stands_for_is_read(tmp_path, kind):
    """Also under the name of another one: ImageNet has a PNG that is called .JPEG."""
    Image.new("RGB", (40, 40), (200, 100, 50)).save(tmp_path / "picture.jpeg", kind)
    read = np.asarray(read_rgb(tmp_path / "picture.jpeg"), dtype=int)
    assert read.shape == (40, 40, 3) and np.abs(read - (200, 100, 50)).max() <= 5


def test_colors_of_16_bits_keep_their_upper_8(tmp_path):
    """A PNG by hand, for Pillow writes none: Pillow scales these right, so they are not refused."""
    values = (np.arange(40 * 50 * 3).reshape(40, 50, 3) * 10).astype(">u2")

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.tobytes() for row in values)
    path = tmp_path / "color.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 50, 40, 16, 2, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    np.testing.assert_array_equal(np.asarray(read_rgb(path)), values >> 8)


GRAY = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 32                 # 0 ... 63,968


@pytest.mark.parametrize("name, pixels", [
    ("0.png", GRAY), ("0.tif", GRAY), ("0.tiff", GRAY.astype(">u2")), ("0.tif", GRAY.astype(np.int32)),
    ("0.pgm", GRAY), ("0.tif", (GRAY / 65_535).astype(np.float32)), ("0.tif", GRAY.astype(np.float32))])
def test_images_of_more_than_8_bits_are_refused_by_name(tmp_path, name, pixels):
    """Pillow's convert("RGB") clips them at 255."""
    Image.fromarray(pixels).save(tmp_path / name)
    why = rf"^{tmp_path / name} has pixels of more than 8 bits .*mode [IF].*: convert the images"
    with pytest.raises(UserError, match=why):
        read_rgb(tmp_path / name)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)                                  # the address of a socket is at most 107 bytes long


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n"
GIF = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"


@pytest.mark.parametrize("make, why", [
    (os.mkfifo, "1.png is not a regular file"), (unix_socket, "1.png is not a regular file"),
    (lambda path: path.symlink_to("/dev/zero"), "1.png is not a regular file"),
    (lambda path: path.write_bytes(POSTSCRIPT), "UnidentifiedImageError"),
    (lambda path: path.write_bytes(GIF), "UnidentifiedImageError")])
def test_special_files_and_formats_that_no_name_stands_for_are_not_opened(tmp_path, monkeypatch, make, why):
    """To read a pipe waits for ever: the alarm would end the test. For PostScript Pillow starts Ghostscript."""
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "1.png")
    signal.alarm(20)
    try:
        with pytest.raises(UserError, match=f"^{tmp_path}/1.png cannot be read as an image .*{why}"):
            read_rgb(tmp_path / "1.png")
    finally:
        signal.alarm(0)


def test_images_are_listed_as_torchvision_lists_them(tmp_path):
    root = image_folder(tmp_path, classes=("b", "a", "c"))
    for place in ("a/below", "a/below/deeper", "a-more/x", "b/Z"):
        (root / "train" / place).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(root / "train" / place / "10.JPG")
    (root / "train" / "c" / "linked").symlink_to(root / "train" / "a")
    (root / "val" / "a-more").symlink_to(root / "val" / "a")
    ours, theirs = open_source("imagenet", str(root)).train, datasets.ImageFolder(root / "train")
    assert ours.samples == theirs.samples and len(ours) == 12 * 3 + 4 + 12 + 2
    assert (ours.classes, ours.class_to_idx, ours.targets) == (theirs.classes, theirs.class_to_idx, theirs.targets)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".Trash-1000", "@eaDir", "__MACOSX"])
@pytest.mark.parametrize("place", ["train", "train/birch", "train/birch/below", "val/ash"])
def test_folders_that_programs_made_are_no_part_of_the_data(tmp_path, name, place):
    """Beside the classes, or within one: the notebook's copy of an image is no image more."""
    folder = image_folder(tmp_path) / place / name
    folder.mkdir(parents=True)
    for path in (folder / "0-checkpoint.png", folder / "notes.txt"):
        path.touch()
    source = open_source("imagenet", str(tmp_path))
    assert (source.classes, len(source.train), len(source.test)) == (["ash", "birch"], 24, 10)


def test_a_folder_below_a_class_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """torchvision leaves it out. root may read everywhere, so the refusal is put in."""
    closed = image_folder(tmp_path) / "train" / "birch" / "more"
    closed.mkdir()

    def scandir(path, original=os.scandir):
        if os.fspath(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=f"^{closed} cannot be read .Permission denied.: change its permissions"):
        open_source("imagenet", str(tmp_path))


# Parts of a data set, and who loads them

@pytest.mark.parametrize("limit, length", [(None, 21), (21, 21), (22, 21), (100, 21), (5, 5), (1, 1)])
def test_limit_takes_the_first(limit, length):
    taken = limit_dataset(PICTURES, limit)
    assert [taken[number][1] for number in range(len(taken))] == list(range(length))


def test_limit_takes_from_every_class(tmp_path):
    source = open_source("imagenet", str(image_folder(tmp_path, classes=("a", "b", "c"))), 32)
    assert [label for _, label in limit_dataset(source.train, 6)] == [0, 0, 1, 1, 2, 2]
    assert len(limit_dataset(source.train, 50)) == 36


def test_the_default_number_of_workers_is_a_share_of_this_machines_cores(monkeypatch):
    """32 processes on 4 machines of 128 cores: 16 each, not 4."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(128), raising=False)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 32)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert (choose_workers(None), choose_workers(0), choose_workers(50)) == (16, 0, 50)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert choose_workers(None) == 4
