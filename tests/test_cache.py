"""`--cache`: what is stored, what a kill leaves, and what is refused."""
import io
import os
import resource
import signal
import time

import pytest
import torch
from PIL import Image
from runs import before, image_folder, in_child, run, run_ranks, send

from mpvg_minimal.data import cache, sources
from mpvg_minimal.data.batches import Batches
from mpvg_minimal.runtime import files
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


def jpegs(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_stored_once_with_its_shorter_side_reduced(root, tmp_path, workers):
    folder = tmp_path / "cache"
    source, original = cached(root, folder, workers=workers), sources.open_imagenet(str(root), SIZE)
    assert jpegs(folder / "train") == jpegs(root / "train") and not (folder / "val").exists()
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
    made = jpegs(tmp_path / "cache")
    assert len(made) == 8
    for name in made:
        os.utime(tmp_path / "cache" / name, (1, 1))
    (tmp_path / "cache" / made[0]).unlink()
    source = cached(root, tmp_path / "cache")
    times = [os.path.getmtime(path) for path, _ in source.train.samples]
    assert len(times) == 24 and times.count(1) == 7


def test_a_kill_leaves_only_whole_images_and_the_next_run_goes_on(root, tmp_path):
    folder = tmp_path / "cache"
    kill = before(os, "replace", 5, send(signal.SIGKILL))
    killed = in_child(lambda: (kill(), cached(root, folder)))
    assert killed.code == -signal.SIGKILL and len(jpegs(folder)) == 4
    assert len(list(folder.rglob(".*"))) == 1                       # the fifth, which was not renamed any more
    source = cached(root, folder)
    assert len(sources.open_imagenet(str(root), SIZE).train) == len(source.train) == 24
    assert all(min(image.size) <= SIDE for image, _ in source.train)


def other_size(root, folder):
    return SIZE + 28, "shorter_side = 32, now it is 64"


def other_source(root, folder):
    (root / "train" / "ash" / "5.jpg").unlink()
    return SIZE, "images = 24, now it is 23"


OTHER_FILES = "checksum_of_names_sizes_and_times = .*, now it is"


def other_names(root, folder):
    (root / "train" / "ash" / "5.jpg").rename(root / "train" / "ash" / "50.jpg")
    return SIZE, OTHER_FILES


def the_same_names_in_another_data_set(root, folder):
    """As old as the first one, as archives have it: the sizes differ."""
    for path in (root / "train").rglob("*.jpg"):
        with Image.open(path) as image:
            other = image.convert("RGB").rotate(90)
        keep_time(path, lambda: other.save(path))
    return SIZE, OTHER_FILES


def an_emptied_original(root, folder):
    path = root / "train" / "ash" / "5.jpg"
    keep_time(path, lambda: path.write_bytes(b""))
    return SIZE, OTHER_FILES


def an_original_of_another_time(root, folder):
    path = root / "train" / "ash" / "5.jpg"
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    return SIZE, OTHER_FILES


def keep_time(path, change):
    status = path.stat()
    change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def a_lost_original(root, folder):
    """A link to nowhere: the name is there, the image is not."""
    path = root / "train" / "ash" / "5.jpg"
    path.unlink()
    path.symlink_to(root / "nowhere")
    return SIZE, None


def no_stamp(root, folder):
    (folder / "cache.json").unlink()
    return SIZE, "neither empty nor a cache .FileNotFoundError"


def a_folder_for_a_stamp(root, folder):
    (folder / "cache.json").unlink()
    (folder / "cache.json").mkdir()
    return SIZE, "neither empty nor a cache .ValueError: cache.json is not a regular file"


def a_pipe_for_a_stamp(root, folder):
    (folder / "cache.json").unlink()
    os.mkfifo(folder / "cache.json")
    return SIZE, "neither empty nor a cache .ValueError: cache.json is not a regular file"


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("change", [
    other_size, other_source, other_names, the_same_names_in_another_data_set, an_emptied_original,
    an_original_of_another_time, a_lost_original, no_stamp, a_folder_for_a_stamp, a_pipe_for_a_stamp])
def test_a_folder_that_is_no_cache_of_these_images_is_refused(root, tmp_path, change):
    cached(root, tmp_path / "cache")
    size, why = change(root, tmp_path / "cache")
    expected = f"--cache {tmp_path}/cache .*{why}" if why else f"^{root}/train/ash/5.jpg cannot be read"
    with pytest.raises(UserError, match=expected) as caught:
        cached(root, tmp_path / "cache", size=size)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("content, why", [
    (b"{", "JSONDecodeError"), (b"", "JSONDecodeError"), (b"\xff\xfe{}", "UnicodeDecodeError"),
    (b"[" * 100_000, "RecursionError"), (b"[]", "holds something else"), (b"3", "holds something else"),
    (b"null", "holds something else"), (b'"images"', "holds something else"),
    (b"{}", "shorter_side = None, now it is 32"), (b'{"shorter_side": [32]}', r"shorter_side = \[32\], now it is 32"),
    (b'{"shorter_side": "%s"}' % (b"3" * 9_000), "shorter_side = '3{39}, now it is 32")])
def test_a_damaged_or_foreign_stamp_is_refused(root, tmp_path, content, why):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.json").write_bytes(content)
    with pytest.raises(UserError, match=f"--cache {tmp_path}/cache .*{why}") as caught:
        cached(root, tmp_path / "cache")
    assert len(str(caught.value)) < 600 and not (tmp_path / "cache" / "train").exists()


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("name, why", [("", "it is the current folder"), ("a\0b", "null"), ("x" * 300, "too long"),
                                       ("file", "File"), ("file/below", "Not a directory")])
def test_a_name_that_no_cache_can_have_is_refused(root, tmp_path, name, why, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--cache .*{why}"):
        cached(root, cache.Path(name))


def test_names_that_are_long_or_not_utf8_are_cached(root, tmp_path):
    """A name of 255 bytes is the longest that Linux has."""
    ash = os.fsencode(root / "train" / "ash")
    for old, new in ((b"0.jpg", b"l" * 251 + b".jpg"), (b"1.jpg", b"\xff\xfe.jpg")):
        os.rename(os.path.join(ash, old), os.path.join(ash, new))
    for split in (b"train", b"val"):                    # and a class whose name is not UTF-8
        folder = os.path.join(os.fsencode(root), split)
        os.rename(os.path.join(folder, b"birch"), os.path.join(folder, b"b\xffrch"))
    source = cached(root, tmp_path / "cache")
    assert len([image.load() for image, _ in source.train]) == 24
    assert {os.fsencode(path) for path, _ in source.train.samples} >= {
        os.fsencode(tmp_path) + b"/cache/train/ash/" + name for name in (b"l" * 251 + b".jpg", b"\xff\xfe.jpg")}
    assert cached(root, tmp_path / "cache").identity() == source.identity()


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_while_the_cache_is_made(root, tmp_path, workers):
    bad = root / "train" / "birch" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(UserError, match=f"^{bad} cannot be read as an image"):
        cached(root, tmp_path / "cache", workers=workers)


@pytest.mark.promise("disk full")
@pytest.mark.parametrize("room", [0, 20, 400])
def test_a_full_disk_is_one_line_whose_advice_works(root, tmp_path, room):
    """Room for nothing, for a part of cache.json, for all of it: the next run goes on, and no half file is left."""
    def fill():
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
        try:
            cached(root, tmp_path / "cache")
        finally:                                        # under the limit stderr's file is full too
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    name = "0.jpg" if room == 400 else "cache.json"
    ended = in_child(fill)
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert f"{name} cannot be written (OSError: [Errno 27] File too large): make room or name another" in ended.err
    assert not [path for path in (tmp_path / "cache").rglob(".*")]
    assert len(cached(root, tmp_path / "cache").train) == 24


def stamp_of(number):
    return {"shorter_side": number, "images": 24}


@pytest.mark.parametrize("other", [32, 64])
def test_processes_that_claim_a_new_cache_at_the_same_time_agree(tmp_path, monkeypatch, other):
    """The second one comes at the worst moment: the first has seen an empty folder, and not yet written its stamp."""
    def listdir_then_other(folder, listdir=os.listdir):
        names = listdir(folder)
        monkeypatch.setattr(os, "listdir", listdir)
        cache.claim_folder(tmp_path, stamp_of(other))
        return names

    monkeypatch.setattr(os, "listdir", listdir_then_other)
    if other == 32:
        cache.claim_folder(tmp_path, stamp_of(32))
    else:
        with pytest.raises(UserError, match="shorter_side = 64, now it is 32"):
            cache.claim_folder(tmp_path, stamp_of(32))
    assert os.listdir(tmp_path) == ["cache.json"]
    cache.claim_folder(tmp_path, stamp_of(other))


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")
    monkeypatch.setattr(os, "link", refuse)
    cache.claim_folder(tmp_path, stamp_of(32))
    cache.claim_folder(tmp_path, stamp_of(32))
    assert os.listdir(tmp_path) == ["cache.json"]


def test_a_stamp_that_another_process_is_just_writing_is_no_strange_file(tmp_path):
    (tmp_path / ".cache.json.17").write_text("{")
    cache.claim_folder(tmp_path, stamp_of(32))
    cache.claim_folder(tmp_path, stamp_of(32))
    with pytest.raises(UserError, match="shorter_side = 32, now it is 64"):
        cache.claim_folder(tmp_path, stamp_of(64))


def test_a_symbolic_link_for_the_temporary_file_is_not_followed(tmp_path, monkeypatch):
    """Neither in the cache, nor where the name of the temporary file can be known: in a run's folder."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (".guessed", "config.json.tmp"):
        (tmp_path / name).symlink_to(victim)
    cache.write(tmp_path / "0.jpg", b"new")
    files.write_text(tmp_path / "config.json", "new")
    assert victim.read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["0.jpg", "config.json", "victim"]
    assert (tmp_path / "0.jpg").read_bytes() == (tmp_path / "config.json").read_bytes() == b"new"
    for name in ("0.jpg", "config.json"):
        assert not (tmp_path / name).is_symlink()


@pytest.mark.parametrize("spoil", [lambda path: (path.unlink(), os.mkfifo(path)), lambda path: path.write_bytes(b"")])
def test_an_image_of_the_cache_that_cannot_be_read_is_named_and_made_again(root, tmp_path, spoil):
    source = cached(root, tmp_path / "cache")
    path = tmp_path / "cache" / "train" / "ash" / "5.jpg"
    spoil(path)
    with pytest.raises(UserError, match=f"^{path} cannot be read as an image .*replace or remove it"):
        list(Batches(source.train, sources.plain(source), batch_size=24, train=False).epoch())
    path.unlink()
    assert len(list(cached(root, tmp_path / "cache").train)) == 24


FLAGS = ("train_imagenet", "--model", "vit_nano", "--image-size", 32, "--gap", "--mpvg", "--batch-size", 8, "--epochs",
         1, "--workers", 0)


def test_a_run_trains_on_the_cache_and_is_not_resumed_without_it(root, tmp_path):
    flags = (*FLAGS, "--data-dir", root, "--out", tmp_path / "run")
    trained = run(*flags, "--cache", tmp_path / "cache")
    assert (trained.code, trained.err) == (0, "") and len(jpegs(tmp_path / "cache")) == 24
    original = root / "train" / "ash" / "3.jpg"                                 # it is not read any more
    keep_time(original, lambda: original.write_bytes(bytes(original.stat().st_size)))
    again = run(*flags, "--cache", tmp_path / "cache", "--resume", "--epochs", 2)
    assert (again.code, again.err) == (0, "")
    without = run(*flags, "--resume", "--epochs", 2)
    assert without.code == 2 and "cache = 37, now it is None" in without.err


def test_two_processes_make_the_cache_together(root, tmp_path):
    """Each image by one of them, half by each, and none trains before all are there."""
    def log():
        write = cache.write

        def logged(target, content, **options):
            with (tmp_path / "log").open("a") as file:
                file.write(f"{os.getpid()} {target}\n")
            write(target, content, **options)
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
