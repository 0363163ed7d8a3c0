"""`--cache`: what is stored, what a kill leaves, and what is refused."""
import io
import os
import resource
import signal

import pytest
import torch
from PIL import Image
from runs import FOLDER, before, image_folder, in_child, one_line, run, run_ranks, send

from mpvg_minimal.data import cache, sources
from mpvg_minimal.data.batches import Batches
from mpvg_minimal.runtime import files
from mpvg_minimal.runtime.errors import UserError

SIZE, SIDE = 28, 32                                 # of the model's images, and so of the cache's shorter sides


@pytest.fixture
def root(tmp_path):
    """24 training images of 40 x 40, but one of 100 x 60, one smaller than the cache's and one in gray."""
    root = image_folder(tmp_path / "data")
    pixels = torch.randint(256, (60, 100, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(root / "train" / "ash" / "0.jpg")
    Image.fromarray(pixels[:30, :50].numpy()).save(root / "train" / "ash" / "1.jpg")
    Image.fromarray(pixels[..., 0].numpy()).save(root / "train" / "birch" / "2.jpg")
    return root


def cached(root, folder, size=SIZE) -> sources.Source:
    return cache.cached(sources.open_imagenet(str(root), size), folder)


def fill(root, folder) -> list[Image.Image]:
    return [image for image, _ in cached(root, folder).train]


def jpegs(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))


def test_each_image_is_stored_once_with_its_shorter_side_reduced(root, tmp_path):
    folder = tmp_path / "cache"
    source, original = cached(root, folder), sources.open_imagenet(str(root), SIZE)
    assert source.test.samples == original.test.samples and source.identity() == original.identity()
    for (image, label), (large, expected_label) in zip(source.train, original.train, strict=True):
        small = large.resize((round(large.width * SIDE / large.height), SIDE), Image.Resampling.BICUBIC)
        content = io.BytesIO()
        small.save(content, "JPEG", quality=95)
        expected = large if large.height <= SIDE else Image.open(content)
        assert image.mode == "RGB" and image.size == expected.size and image.tobytes() == expected.tobytes()
        assert label == expected_label
    assert jpegs(folder / "train") == jpegs(root / "train") and not (folder / "val").exists()


def test_what_is_there_is_not_made_again_and_what_is_missing_is(root, tmp_path):
    folder = tmp_path / "cache"
    dataset = cached(root, folder).train
    for index in range(8):
        dataset[index]
    made = jpegs(folder)
    assert len(made) == 8
    for name in made:
        os.utime(folder / name, (1, 1))
    (folder / made[0]).unlink()
    fill(root, folder)
    times = [os.path.getmtime(folder / name) for name in jpegs(folder)]
    assert len(times) == 24 and times.count(1) == 7


def test_a_kill_leaves_only_whole_images_and_the_next_run_goes_on(root, tmp_path):
    folder = tmp_path / "cache"
    kill = before(os, "replace", 5, send(signal.SIGKILL))
    killed = in_child(lambda: (kill(), fill(root, folder)))
    assert killed.code == -signal.SIGKILL and len(jpegs(folder)) == 4
    assert len(list(folder.rglob(".*"))) == 1                       # the fifth, which was not renamed any more
    images = fill(root, folder)
    assert len(images) == 24 and all(min(image.size) <= SIDE for image in images)


def keep_time(path, change):
    status = path.stat()
    change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def exchange_all(original, _stamp):
    """As old as the first ones, as archives have them: the sizes differ."""
    for path in original.parent.parent.rglob("*.jpg"):
        with Image.open(path) as image:
            other = image.convert("RGB").rotate(90)
        keep_time(path, lambda: other.save(path))


def change_the_time(original, _stamp):
    status = original.stat()
    original.write_bytes(bytes(status.st_size))
    os.utime(original, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


OTHER_FILES = "^--cache .*/cache was made with checksum_of_names_sizes_and_times = .*, now it is"
NO_CACHE = "^--cache .*/cache is neither empty nor a cache "
CHANGES = {                                             # name: what is done to an original and to the stamp, and why
    "other size": (lambda *_: None, "^--cache .*/cache was made with shorter_side = 32, now it is 64"),
    "one less": (lambda original, _: original.unlink(), "^--cache .*/cache was made with images = 24, now it is 23"),
    "other name": (lambda original, _: original.rename(original.with_name("50.jpg")), OTHER_FILES),
    "same names, other images": (exchange_all, OTHER_FILES),
    "emptied": (lambda original, _: keep_time(original, lambda: original.write_bytes(b"")), OTHER_FILES),
    "other time": (change_the_time, OTHER_FILES),
    "link to nowhere": (lambda original, _: (original.unlink(), original.symlink_to("nowhere")),
                        "^.*/data/train/ash/5.jpg cannot be read"),
    "no stamp": (lambda _, stamp: stamp.rename(stamp.with_name("other.json")), NO_CACHE + ".FileNotFoundError"),
    "folder for a stamp": (lambda _, stamp: (stamp.unlink(), stamp.mkdir()),
                           NO_CACHE + ".ValueError: cache.json is not a regular file"),
    "pipe for a stamp": (lambda _, stamp: (stamp.unlink(), os.mkfifo(stamp)),
                         NO_CACHE + ".ValueError: cache.json is not a regular file")}


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("name", CHANGES)
def test_a_folder_that_is_no_cache_of_these_images_is_refused(root, tmp_path, name):
    cached(root, tmp_path / "cache")
    change, why = CHANGES[name]
    change(root / "train" / "ash" / "5.jpg", tmp_path / "cache" / "cache.json")
    with pytest.raises(UserError, match=why) as caught:
        cached(root, tmp_path / "cache", size=SIZE + 28 if name == "other size" else SIZE)
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
    assert len(fill(root, tmp_path / "cache")) == 24
    names = {os.fsencode(path.relative_to(tmp_path)) for path in (tmp_path / "cache").rglob("*.jpg")}
    assert len(names) == 24 and names >= {b"cache/train/ash/" + b"l" * 251 + b".jpg", b"cache/train/ash/\xff\xfe.jpg"}
    assert len(fill(root, tmp_path / "cache")) == 24


@pytest.mark.promise("bad data")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_while_the_cache_is_made(root, tmp_path, workers):
    bad = root / "train" / "birch" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    source = cached(root, tmp_path / "cache")
    with pytest.raises(UserError, match=f"^{bad} cannot be read as an image"):
        list(Batches(source.train, sources.plain(source), batch_size=24, train=False, workers=workers).epoch())


@pytest.mark.promise("disk full")
@pytest.mark.parametrize("room", [0, 20, 400])
def test_a_full_disk_is_one_line_whose_advice_works(root, tmp_path, room):
    """Room for nothing, for a part of cache.json, for all of it: the next run goes on, and no half file is left."""
    def fill_little_room():
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
        try:
            fill(root, tmp_path / "cache")
        finally:                                        # under the limit stderr's file is full too
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    name = "0.jpg" if room == 400 else "cache.json"
    ended = in_child(fill_little_room)
    one_line(ended, f"{name} cannot be written (OSError: [Errno 27] File too large): make room or name another")
    assert not [path for path in (tmp_path / "cache").rglob(".*")]
    assert len(fill(root, tmp_path / "cache")) == 24


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
    """Nor does a stamp that another process is just writing make the folder a strange one."""
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")
    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / ".cache.json.17").write_text("{")
    cache.claim_folder(tmp_path, stamp_of(32))
    cache.claim_folder(tmp_path, stamp_of(32))
    assert sorted(os.listdir(tmp_path)) == [".cache.json.17", "cache.json"]


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
    fill(root, tmp_path / "cache")
    path = tmp_path / "cache" / "train" / "ash" / "5.jpg"
    spoil(path)
    with pytest.raises(UserError, match=f"^{path} cannot be read as an image .*replace or remove it"):
        fill(root, tmp_path / "cache")
    path.unlink()
    assert len(fill(root, tmp_path / "cache")) == 24


def test_a_run_trains_on_the_cache_and_is_not_resumed_without_it(root, tmp_path):
    flags = (*FOLDER, "--epochs", 1, "--data-dir", root, "--out", tmp_path / "run")
    trained = run(*flags, "--cache", tmp_path / "cache")
    assert (trained.code, trained.err) == (0, "") and len(jpegs(tmp_path / "cache")) == 24
    original = root / "train" / "ash" / "3.jpg"                                 # it is not read any more
    keep_time(original, lambda: original.write_bytes(bytes(original.stat().st_size)))
    again = run(*flags, "--cache", tmp_path / "cache", "--resume", "--epochs", 2)
    assert (again.code, again.err) == (0, "")
    one_line(run(*flags, "--resume", "--epochs", 2), "cache = 37, now it is None")


def test_two_processes_make_the_cache_together(root, tmp_path):
    """Each image is made by the process that trains on it: half by each."""
    def log():
        write = cache.write

        def logged(target, content, **options):
            with (tmp_path / "log").open("a") as file:
                file.write(f"{os.getpid()} {target}\n")
            write(target, content, **options)
        cache.write = logged

    flags = (*FOLDER, "--epochs", 1, "--data-dir", root, "--cache", tmp_path / "cache", "--out", tmp_path / "run")
    ends = run_ranks(*flags, faults=(log, log))
    assert [end.code for end in ends] == [0, 0], ends
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines() if line.endswith(".jpg")]
    assert len(lines) == len({target for _, target in lines}) == 24
    assert sorted([pid for pid, _ in lines].count(pid) for pid in {pid for pid, _ in lines}) == [12, 12]
