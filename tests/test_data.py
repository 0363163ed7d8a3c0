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
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2

from mpvg_minimal.data.batches import Batches
from mpvg_minimal.data.images import read_rgb
from mpvg_minimal.data.loading import choose_workers
from mpvg_minimal.data.sources import (
    Source,
    augmentation,
    limit_dataset,
    mixing,
    normalize,
    open_cifar,
    open_imagenet,
    open_source,
    plain,
)
from mpvg_minimal.runtime import distributed
from mpvg_minimal.runtime.errors import UserError

AUGMENT = dict(scale=[0.3, 1.0], rand_augment=9, erasing=0.5)


class Pictures(Dataset):
    """PIL images of random pixels; the label of an image is its index, so that a batch tells what it holds."""

    def __init__(self, size: int, side: int = 24):
        self.pixels = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), index


PICTURES = Pictures(21)
SOURCE = Source(PICTURES, PICTURES, [str(index) for index in range(21)], 16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def batches(transform=None, *, batch_size: int = 4, train: bool = True, **options) -> Batches:
    transform = augmentation(SOURCE, **AUGMENT) if transform == "augmented" else v2.PILToTensor()
    return Batches(PICTURES, transform, batch_size=batch_size, train=train, **options)


def order(of: Batches, epoch: int = 0, start: int = 0) -> list[list[int]]:
    return [labels.tolist() for _, labels in of.epoch(epoch, start)]


def assert_same(a: list, b: list) -> None:
    assert len(a) == len(b) > 0
    for (images, labels), (others, other_labels) in zip(a, b):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


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
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1), PICTURES.pixels)


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
        expected = list(alone.epoch(epoch))
        torch.rand(3)
        assert_same(list(workers.epoch(epoch)), expected)
        assert_same(list(workers.epoch(epoch, start=3)), expected[3:])
    next(workers.epoch(5))                                      # left in the middle, with batches under way
    assert_same(list(workers.epoch(0)), list(batches("augmented").epoch(0)))


def test_an_image_depends_on_seed_epoch_and_index_alone():
    def images(epoch=0, **options):
        return {int(label): image for batch in batches("augmented", **options).epoch(epoch)
                for image, label in zip(*batch)}

    expected = images()
    for other in (images(batch_size=7), images(batch_size=10, rank=1, world=2)):
        assert all(torch.equal(image, expected[index]) for index, image in other.items() if index in expected)
    for other in (images(epoch=1), images(seed=1)):
        assert not any(torch.equal(image, expected[index]) for index, image in other.items() if index in expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generator_alone(workers):
    before = torch.get_rng_state()
    assert len(list(batches("augmented", workers=workers).epoch(0))) == 5
    assert torch.equal(torch.get_rng_state(), before)


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


def test_erased_pixels_get_the_mean_colour():
    """At magnitude 0 no operation changes a black image, so what is not black was erased."""
    def augmented(erasing):
        transform = augmentation(SOURCE, scale=[1.0, 1.0], rand_augment=0, erasing=erasing)
        return torch.stack([transform(Image.new("RGB", (16, 16))) for _ in range(40)])

    assert augmented(0.0).eq(0).all()
    erased = augmented(1.0).ne(0).any(1)
    assert erased.flatten(1).any(1).all() and 0.02 < erased.double().mean() < 0.4
    colour = torch.tensor([128, 102, 76], dtype=torch.uint8)                    # 255 times (0.5, 0.4, 0.3)
    assert (augmented(1.0).permute(0, 2, 3, 1).flatten(0, 2).unique(dim=0) == torch.stack([0 * colour, colour])).all()
    assert 5 < augmented(0.5).ne(0).flatten(1).any(1).sum() < 35


def test_crop_and_flip_happen():
    image = Image.fromarray(np.arange(24, dtype=np.uint8)[None, :, None].repeat(24, 0).repeat(3, 2) * 10)
    transform = augmentation(SOURCE, scale=[0.3, 0.3], rand_augment=0, erasing=0.0)
    rows = torch.stack([transform(image) for _ in range(60)])[:, 0, 8].int()
    steps = rows[:, -1] - rows[:, 0]
    assert 15 < (steps < 0).sum() < 45                                          # flipped
    assert 90 < steps.abs().median() < 160                                      # a part of 0 ... 230


# From uint8 to what the model gets

def test_normalise_as_numpy():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    result = normalize(images, *(torch.tensor(values).float().view(3, 1, 1) for values in (mean, std)))
    expected = (images.numpy().transpose(0, 2, 3, 1) / 255.0 - mean) / std
    np.testing.assert_allclose(result.numpy().transpose(0, 2, 3, 1), expected, atol=1e-5)
    assert result.dtype == torch.float32


def mixed(mix) -> tuple[np.ndarray, np.ndarray]:
    """Image number i is i everywhere and of class i: then pixels and targets show what was mixed."""
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 10, 10)
    mixed_images, targets = mix(images, torch.arange(6))
    assert targets.shape == (6, 6)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    return mixed_images.numpy(), targets.numpy()


def test_mixup_mixes_images_as_targets():
    mix, shares = mixing(6, mixup=0.8, cutmix=0.0), []
    for _ in range(20):
        images, targets = mixed(mix)
        np.testing.assert_allclose(images, (targets @ np.arange(6))[:, None, None, None].repeat(3, 1).repeat(
            10, 2).repeat(10, 3), atol=1e-5)
        assert ((targets > 0).sum(1) <= 2).all()
        shares.append(targets[0, 0])
    assert len(set(shares)) == 20 and min(shares) < 0.4 and max(shares) > 0.6


def test_cutmix_pastes_pixels_as_targets():
    mix = mixing(6, mixup=0.0, cutmix=1.0)
    for _ in range(20):
        images, targets = mixed(mix)
        counted = np.stack([(images == number).mean((1, 2, 3)) for number in range(6)], 1)
        np.testing.assert_allclose(counted, targets, atol=1e-5)


def test_mixup_and_cutmix_take_turns():
    def kinds(seed):
        torch.manual_seed(seed)
        mix = mixing(6, mixup=0.8, cutmix=1.0)
        return ["cutmix" if (mixed(mix)[0] % 1 == 0).all() else "mixup" for _ in range(100)]

    assert 30 < kinds(1).count("cutmix") < 70 and kinds(1) == kinds(1) != kinds(2)
    assert mixing(6, mixup=0.0, cutmix=0.0) is None


@pytest.mark.parametrize("limit, length", [(None, 21), (21, 21), (22, 21), (100, 21), (5, 5), (1, 1)])
def test_limit_takes_the_first(limit, length):
    taken = limit_dataset(PICTURES, limit)
    assert [taken[number][1] for number in range(len(taken))] == list(range(length))


# CIFAR

def write_cifar(folder: Path, monkeypatch, kind=datasets.CIFAR10) -> dict[str, dict]:
    """The files of CIFAR-10 or CIFAR-100 in their layout, with few images, and their checksums told to torchvision."""
    rng, contents = np.random.default_rng(0), {}

    def pixels_and_labels(count):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)            # red, green, blue, row by row
        if kind is datasets.CIFAR100:
            return {"data": pixels, "fine_labels": rng.integers(0, 100, count).tolist(),
                    "coarse_labels": rng.integers(0, 20, count).tolist(), "filenames": ["a.png"] * count}
        return {"data": pixels, "labels": rng.integers(0, 10, count).tolist(), "batch_label": "a batch",
                "filenames": ["a.png"] * count}

    for name, _ in kind.train_list + kind.test_list:
        contents[name] = pixels_and_labels(4 if kind is datasets.CIFAR10 else 20)
    if kind is datasets.CIFAR100:
        contents["meta"] = {"fine_label_names": [f"fine {number}" for number in range(100)],
                            "coarse_label_names": [f"coarse {number}" for number in range(20)]}
    else:
        contents["batches.meta"] = {"label_names": [f"class {number}" for number in range(10)],
                                    "num_cases_per_batch": 4, "num_vis": 3072}
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


@pytest.mark.parametrize("name, kind, key, classes", [
    ("cifar10", datasets.CIFAR10, "labels", [f"class {number}" for number in range(10)]),
    ("cifar100", datasets.CIFAR100, "fine_labels", [f"fine {number}" for number in range(100)])])
def test_cifar_is_read_as_it_is_stored(tmp_path, monkeypatch, no_network, name, kind, key, classes):
    contents = write_cifar(tmp_path, monkeypatch, kind)
    source = open_source(name, str(tmp_path))
    assert (source.classes, source.image_size, no_network) == (classes, 32, [])
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
        open_cifar(name, str(tmp_path / "data"))
    assert str(tmp_path / "data") in str(caught.value) and len(no_network) >= 1


def test_the_archive_is_enough(tmp_path, monkeypatch, no_network):
    """What the error advises works."""
    contents = write_cifar(tmp_path / "elsewhere", monkeypatch)
    data_dir, archive = tmp_path / "data", tmp_path / "data" / "cifar-10-python.tar.gz"
    data_dir.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "elsewhere" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    source = open_cifar("cifar10", str(data_dir))
    assert source.train.targets[:4] == contents["data_batch_1"]["labels"] and no_network == []


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_cifar_is_refused(tmp_path, monkeypatch, no_network, file):
    write_cifar(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="cifar10 is not complete in .*--dataset shapes"):
        open_cifar("cifar10", str(tmp_path))


def test_a_download_that_brings_something_else_is_refused(tmp_path, monkeypatch, no_network):
    def junk(_url, path, **_):
        Path(path).write_bytes(b"<html>")

    monkeypatch.setattr(datasets.utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(datasets.utils, "_urlretrieve", junk)
    with pytest.raises(UserError, match="cifar10 is not complete .*put cifar-10-python.tar.gz"):
        open_cifar("cifar10", str(tmp_path))


def test_a_data_dir_that_is_a_file_is_refused(tmp_path, no_network):
    (tmp_path / "data").touch()
    with pytest.raises(UserError, match="cifar10 is not complete"):
        open_cifar("cifar10", str(tmp_path / "data"))


# ImageNet

def write_folders(root: Path, classes=("cat", "dog"), *, train: int = 4, val: int = 2) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def test_imagenet_is_folders_of_classes(tmp_path):
    source = open_source("imagenet", str(write_folders(tmp_path)), 32)
    assert (source.classes, source.image_size, len(source.train), len(source.test)) == (["cat", "dog"], 32, 8, 4)
    assert (source.mean, source.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert [label for _, label in source.train] == [0] * 4 + [1] * 4


def test_testing_resizes_and_crops_the_centre(tmp_path):
    """The short side becomes 8/7 of the image size, 256 for 224 and 37 for 32."""
    source = open_imagenet(str(write_folders(tmp_path)), 32)
    images, _ = next(Batches(source.test, plain(source), batch_size=2, train=False).epoch())
    for number, image in enumerate(images):
        with Image.open(tmp_path / "val" / "cat" / f"{number}.png") as original:
            long = 37 * 60 // original.height
            resized = np.asarray(original.resize((long, 37), Image.Resampling.BICUBIC))
        left, top = round((long - 32) / 2), round((37 - 32) / 2)
        np.testing.assert_array_equal(image.permute(1, 2, 0), resized[top:top + 32, left:left + 32])
    standard = plain(open_imagenet(str(tmp_path)))
    assert standard(Image.new("RGB", (500, 300))).shape == (3, 224, 224)
    assert standard.transforms[0].size == [256]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_every_kind_of_image_becomes_three_channels(tmp_path, mode):
    write_folders(tmp_path, train=1, val=1)
    Image.new("RGB", (50, 50), (255, 255, 255)).convert(mode).save(tmp_path / "val" / "cat" / "0.png")
    source = open_imagenet(str(tmp_path), 32)
    images, _ = next(Batches(source.test, plain(source), batch_size=1, train=False).epoch())
    assert images.shape == (1, 3, 32, 32) and images.eq(255).all()


GREY = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 32                 # 0 ... 63,968


@pytest.mark.parametrize("name, pixels", [
    ("0.png", GREY), ("0.tif", GREY), ("0.tiff", GREY.astype(">u2")), ("0.tif", GREY.astype(np.int32)),
    ("0.pgm", GREY), ("0.tif", (GREY / 65_535).astype(np.float32)), ("0.tif", GREY.astype(np.float32))])
@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_more_than_8_bits_are_refused_by_name(tmp_path, name, pixels, workers):
    """Pillow's convert("RGB") clips them at 255."""
    path = write_folders(tmp_path, train=1, val=1) / "val" / "dog" / name
    Image.fromarray(pixels).save(path)
    source = open_imagenet(str(tmp_path), 32)
    with pytest.raises(UserError, match=rf"^{path} has pixels of more than 8 bits .*mode [IF].*: convert the images"):
        list(Batches(source.test, plain(source), batch_size=1, train=False, workers=workers).epoch())


def test_colours_of_16_bits_keep_their_upper_8(tmp_path):
    """A PNG by hand, for Pillow writes none: Pillow scales these right, so they are not refused."""
    values = (np.arange(40 * 50 * 3).reshape(40, 50, 3) * 10).astype(">u2")

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.tobytes() for row in values)
    path = tmp_path / "colour.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 50, 40, 16, 2, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    np.testing.assert_array_equal(np.asarray(read_rgb(path)), values >> 8)


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, unix_socket, device])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_special_file_with_the_name_of_an_image_is_named(tmp_path, monkeypatch, make, workers):
    """To read a pipe waits for ever, so the alarm ends the test if it is opened."""
    path = write_folders(tmp_path, train=1, val=1) / "val" / "dog" / "1.png"
    monkeypatch.chdir(path.parent)                              # the address of a socket is at most 107 bytes long
    make(Path(path.name))
    source = open_imagenet(str(tmp_path), 32)
    signal.alarm(20)
    try:
        with pytest.raises(UserError, match=f"^{path} cannot be read as an image .*not a regular file"):
            list(Batches(source.test, plain(source), batch_size=1, train=False, workers=workers).epoch())
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n",
                                     b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"])
def test_a_format_that_no_name_stands_for_is_not_opened(tmp_path, monkeypatch, content):
    """Pillow goes by the content: for a PostScript file with the name of a JPEG it starts Ghostscript."""
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    path = write_folders(tmp_path, train=1, val=1) / "val" / "cat" / "0.png"
    path.write_bytes(content)
    source = open_imagenet(str(tmp_path), 32)
    with pytest.raises(UserError, match=f"^{path} cannot be read as an image .UnidentifiedImageError"):
        list(Batches(source.test, plain(source), batch_size=1, train=False).epoch())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP"])
def test_every_format_that_a_name_stands_for_is_read(tmp_path, kind):
    """Also under the name of another one: ImageNet has a PNG that is called .JPEG."""
    picture = Image.new("RGB", (40, 40), (200, 100, 50))
    picture.save(tmp_path / "picture.jpeg", kind)
    read = np.asarray(read_rgb(tmp_path / "picture.jpeg"), dtype=int)
    assert read.shape == (40, 40, 3) and np.abs(read - (200, 100, 50)).max() <= 5


def test_images_are_listed_as_torchvision_lists_them(tmp_path):
    root = write_folders(tmp_path, ("b", "a", "c"), train=12)
    for place in ("a/below", "a/below/deeper", "a-more/x", "b/Z"):
        (root / "train" / place).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(root / "train" / place / "10.JPG")
    (root / "train" / "c" / "linked").symlink_to(root / "train" / "a")
    (root / "val" / "a-more").symlink_to(root / "val" / "a")
    ours, theirs = open_imagenet(str(root)).train, datasets.ImageFolder(root / "train")
    assert ours.samples == theirs.samples and len(ours) == 12 * 3 + 4 + 12 + 2
    assert (ours.classes, ours.class_to_idx, ours.targets) == (theirs.classes, theirs.class_to_idx, theirs.targets)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".Trash-1000", "@eaDir", "__MACOSX"])
@pytest.mark.parametrize("place", ["train", "train/dog", "train/dog/below", "val/cat"])
def test_folders_that_programs_made_are_no_part_of_the_data(tmp_path, name, place):
    """Beside the classes, or within one: the notebook's copy of an image is no image more."""
    folder = write_folders(tmp_path) / place / name
    folder.mkdir(parents=True)
    for path in (folder / "0-checkpoint.png", folder / "notes.txt"):
        path.touch()
    source = open_imagenet(str(tmp_path))
    assert (source.classes, len(source.train), len(source.test)) == (["cat", "dog"], 8, 4)


def test_a_folder_below_a_class_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """torchvision leaves it out. root may read everywhere, so the refusal is put in."""
    closed = write_folders(tmp_path) / "train" / "dog" / "more"
    closed.mkdir()

    def scandir(path, original=os.scandir):
        if os.fspath(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=f"^{closed} cannot be read .Permission denied.: change its permissions"):
        open_imagenet(str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet"])
@pytest.mark.parametrize("data_dir, why", [("", "--data-dir '' is no name"), ("a\0b", r"--data-dir 'a\\x00b' is"),
                                           ("x" * 300, "too long"), ("\udcff\udcfe", "\udcff\udcfe")])
def test_a_name_that_no_folder_can_have_is_refused(name, data_dir, why, no_network, tmp_path, monkeypatch):
    """Empty: not the current folder, for instance where the shell's variable is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=why):
        open_source(name, data_dir)


def test_limit_takes_from_every_class(tmp_path):
    source = open_imagenet(str(write_folders(tmp_path, ("a", "b", "c"))), 32)
    assert [label for _, label in limit_dataset(source.train, 6)] == [0, 0, 1, 1, 2, 2]
    assert len(limit_dataset(source.train, 50)) == 12


def without_train(root):
    (root / "train").rename(root / "training")
    return "train/CLASS/\\*.jpg for every class"


def without_val(root):
    (root / "val").rename(root / "valid")
    return "val/CLASS/\\*.jpg for every class"


def a_class_without_images(root):
    (root / "train" / "zebra").mkdir()
    (root / "val" / "zebra").mkdir()
    return "zebra.*train/CLASS/\\*.jpg"


def images_without_class(root):
    for path in (root / "train").glob("*/*"):
        path.rename(root / "train" / f"{path.parent.name}{path.name}")
    return "train/CLASS"


def an_image_beside_the_classes(root):
    (root / "val" / "cat" / "0.png").rename(root / "val" / "lost.png")
    return "val/lost.png is in no class"


def another_file_among_the_images(root):
    (root / "train" / "dog" / "notes.txt").touch()
    return "train/dog/notes.txt does not have the name of an image"


def other_classes(root):
    (root / "val" / "dog").rename(root / "val" / "wolf")
    return "different classes, for instance dog is in one"


def one_class_less(root):
    (root / "val" / "cat").rename(root / "cat")
    return "different classes, for instance cat is in one"


@pytest.mark.parametrize("spoil", [without_train, without_val, a_class_without_images, images_without_class,
                                   an_image_beside_the_classes, another_file_among_the_images, other_classes,
                                   one_class_less])
def test_folders_of_another_form_are_refused(tmp_path, spoil):
    why = spoil(write_folders(tmp_path))
    with pytest.raises(UserError, match=why) as caught:
        open_imagenet(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_hidden_files_are_passed_over(tmp_path):
    (write_folders(tmp_path) / "train" / "dog" / ".DS_Store").touch()
    (tmp_path / "train" / "._0.png").touch()                    # beside the classes
    assert len(open_imagenet(str(tmp_path)).train) == 8


def test_the_default_number_of_workers_is_a_share_of_this_machines_cores(monkeypatch):
    """32 processes on 4 machines of 128 cores: 16 each, not 4."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(128), raising=False)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 32)
    for name, value in (("LOCAL_RANK", "3"), ("LOCAL_WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert distributed.on_this_machine() == (3, 8)
    assert (choose_workers(None), choose_workers(0), choose_workers(50)) == (16, 0, 50)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert choose_workers(None) == 4


# Images and labels without sense

@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(tmp_path, workers):
    bad = write_folders(tmp_path) / "val" / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:100])
    source = open_imagenet(str(tmp_path), 32)
    with pytest.raises(UserError) as caught:
        list(Batches(source.test, plain(source), batch_size=2, train=False, workers=workers).epoch())
    assert str(caught.value).startswith(str(bad)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("expected, why", [
    (dict(classes=20), "image 20 has the label 20, expected 0 to 19"),
    (dict(image_size=16), r"image 0 is of shape \(3, 24, 24\), expected \(3, 16, 16\)")])
def test_an_image_that_does_not_fit_the_model_is_named(expected, why):
    with pytest.raises(UserError, match=why):
        list(batches(train=False, **expected).epoch())
