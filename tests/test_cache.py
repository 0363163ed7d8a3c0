"""`--cache`: what is stored, what a kill leaves, and what is refused."""
import io
import os
import signal
import time

import pytest
import torch
from PIL import Image
from runs import before, image_folder, in_child, run, run_ranks, send

from mpvg_minimal.data import cache, sources
from mpvg_minimal.runtime.errors import UserError

SIZE, SIDE = 28, 32                                 # of the model's images, and so of the cache's shorter sides


@pytest.fixture
def root(tmp_path):
    """24 training images of 40 x 40, but one of 100 x 60, one smaller than the cache's and one in grey."""
    root = image_folder(tmp_path / "data")
    pixels = torch.randint(256, (60, 100, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(root / "train" / "ash" / "0.jpg")
    Image.fromarray(pixels[:30, :50].numpy()).save(root / "train" / "ash" / "1.jpg")
    Image.fromarray(pixels[..., 0].numpy()).save(root / "train" / "birch" / "2.jpg")
    return root


def cached(root, folder, size=SIZE, **options) -> sources.Source:
    return cache.cached(sources.open_imagenet(str(root), size), folder, **dict(limit=None, workers=0) | options)


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_stored_once_with_its_shorter_side_reduced(root, tmp_path, workers):
    folder = tmp_path / "cache"
    source, original = cached(root, folder, workers=workers), sources.open_imagenet(str(root), SIZE)
    assert files(folder / "train") == files(root / "train") and not (folder / "val").exists()
    assert [label for _, label in source.train] == [label for _, label in original.train]
    assert source.test.samples == original.test.samples and source.identity() == original.identity()
    for (image, _), (large, _), (path, _) in zip(source.train, original.train, source.train.samples, strict=True):
        assert path.startswith(str(folder))
        small = large.resize((round(large.width * SIDE / large.height), SIDE), Image.Resampling.BICUBIC)
        content = io.BytesIO()
        small.save(content, "JPEG", quality=95)
        expected = large if large.height <= SIDE else Image.open(content)
        assert image.mode == "RGB" and image.size == expected.size and image.tobytes() == expected.tobytes()
    sizes = [image.size for image, _ in source.train]
    assert sizes[0] == (53, 32) and sizes[1] == (50, 30) and sizes[16] == (53, 32)
    assert len(sizes) == 24 and set(sizes[2:16] + sizes[17:]) == {(32, 32)}


def test_what_is_there_is_not_made_again_and_what_is_missing_is(root, tmp_path):
    cached(root, tmp_path / "cache", limit=8)
    made = files(tmp_path / "cache")
    assert len(made) == 8
    for name in made:
        os.utime(tmp_path / "cache" / name, (1, 1))
    (tmp_path / "cache" / made[0]).unlink()
    source = cached(root, tmp_path / "cache")
    times = [os.path.getmtime(path) for path, _ in source.train.samples]
    assert len(times) == 24 and times.count(1) == 7


def test_a_kill_leaves_only_whole_images_and_the_next_run_goes_on(root, tmp_path):
    folder = tmp_path / "cache"
    kill = before(os, "replace", 6, send(signal.SIGKILL))           # the first is cache.json's
    killed = in_child(lambda: (kill(), cached(root, folder)))
    assert killed.code == -signal.SIGKILL and len(files(folder)) == 4
    assert [path.name[:5] for path in folder.rglob("*.jpg.*")] == [".2.jp"]     # the fifth, not renamed any more
    source = cached(root, folder)
    assert len(sources.open_imagenet(str(root), SIZE).train) == len(source.train) == 24
    assert all(min(image.size) <= SIDE for image, _ in source.train)


def other_size(root, folder):
    return SIZE + 28, "shorter_side = 32, now it is 64"


def other_source(root, folder):
    (root / "train" / "ash" / "5.jpg").unlink()
    return SIZE, "images = 24, now it is 23"


def other_names(root, folder):
    (root / "train" / "ash" / "5.jpg").rename(root / "train" / "ash" / "50.jpg")
    return SIZE, "checksum_of_names = .*, now it is"


def no_stamp(root, folder):
    (folder / "cache.json").unlink()
    return SIZE, "neither empty nor a cache .FileNotFoundError"


def broken_stamp(root, folder):
    (folder / "cache.json").write_text("{")
    return SIZE, "neither empty nor a cache .JSONDecodeError"


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("change", [other_size, other_source, other_names, no_stamp, broken_stamp])
def test_a_folder_that_is_no_cache_of_these_images_is_refused(root, tmp_path, change):
    cached(root, tmp_path / "cache")
    size, why = change(root, tmp_path / "cache")
    with pytest.raises(UserError, match=f"--cache {tmp_path}/cache .*{why}"):
        cached(root, tmp_path / "cache", size=size)


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_while_the_cache_is_made(root, tmp_path, workers):
    bad = root / "train" / "birch" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(UserError, match=f"^{bad} cannot be read as an image"):
        cached(root, tmp_path / "cache", workers=workers)


@pytest.mark.promise("disk full")
def test_a_full_disk_is_one_line(root, tmp_path, monkeypatch):
    cached(root, tmp_path / "cache", limit=4)

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="jpg cannot be written .No space left on device.: make room and start again"):
        cached(root, tmp_path / "cache")


FLAGS = ("train_imagenet", "--model", "vit_nano", "--image-size", 32, "--gap", "--mpvg", "--batch-size", 8, "--epochs",
         1, "--workers", 0)


def test_a_run_trains_on_the_cache_and_is_not_resumed_without_it(root, tmp_path):
    flags = (*FLAGS, "--data-dir", root, "--out", tmp_path / "run")
    trained = run(*flags, "--cache", tmp_path / "cache")
    assert (trained.code, trained.err) == (0, "") and len(files(tmp_path / "cache")) == 24
    (root / "train" / "ash" / "3.jpg").write_bytes(b"")                         # not read any more
    again = run(*flags, "--cache", tmp_path / "cache", "--resume", "--epochs", 2)
    assert (again.code, again.err) == (0, "")
    without = run(*flags, "--resume", "--epochs", 2)
    assert without.code == 2 and "cache = 37, now it is None" in without.err


def test_two_processes_make_the_cache_together(root, tmp_path):
    """Each image by one of them, half by each, and none trains before all are there."""
    def log():
        write = cache.write

        def logged(target, content):
            with (tmp_path / "log").open("a") as file:
                file.write(f"{os.getpid()} {target}\n")
            write(target, content)
        cache.write = logged

    def late():
        log()
        walk = os.walk
        os.walk = lambda *args, **options: (time.sleep(0.3), walk(*args, **options))[1]

    flags = (*FLAGS, "--data-dir", root, "--cache", tmp_path / "cache", "--out", tmp_path / "run")
    ends = run_ranks(*flags, faults=(log, late))
    assert [end.code for end in ends] == [0, 0], ends
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines() if line.endswith(".jpg")]
    assert len(lines) == len({target for _, target in lines}) == 24
    assert sorted([pid for pid, _ in lines].count(pid) for pid in {pid for pid, _ in lines}) == [12, 12]
