"""Files: saving survives a kill and a full disk, damage is found, and nothing in a checkpoint can run code."""
import ast
import functools
import io
import os
import pickle
import random
import re
import signal
import time
import zipfile
from contextlib import suppress

import pytest
import torch
from conftest import ROOT
from runs import SHAPES, before, fork, in_child, one_line, run, small_files

from mpvg_minimal.runtime.errors import UserError
from mpvg_minimal.training import checkpoint


def content(number: int, size: int = 50_000) -> dict:
    """A checkpoint whose tensors all hold its number, so that a mixture of two would show."""
    return {"settings": {"number": number}, "number": number,
            "model": {name: torch.full((size,), float(number)) for name in "abc"}}


def assert_whole(found: dict) -> int:
    """Every tensor holds the checkpoint's number, which is returned."""
    assert all(torch.equal(tensor, torch.full_like(tensor, found["number"])) for tensor in found["model"].values())
    return found["number"]


@pytest.mark.promise("atomic")
@pytest.mark.parametrize("kills", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_killed_while_saving(tmp_path, kills):
    """A process that only saves is killed at a random moment, again and again."""
    draw, reached = random.Random(0), 0
    said = tmp_path / "said"                        # the number of the last save that has returned
    said.write_text("0")

    def save_for_ever():
        number = reached
        descriptor = os.open(said, os.O_WRONLY)
        while True:
            number += 1
            checkpoint.save(tmp_path, content(number))
            os.pwrite(descriptor, f"{number:9}".encode(), 0)

    for _ in range(kills):
        process = fork(save_for_ever).process
        end = time.monotonic() + 30
        while int(said.read_text()) < reached + 2:  # the old process's files are not enough: two saves of its own
            assert time.monotonic() < end, "the saving process does not save"
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        returned = int(said.read_text())
        number = assert_whole(checkpoint.newest(tmp_path))
        assert returned <= number <= returned + 1   # what save() said is saved is there, or the one after it
        if (tmp_path / checkpoint.NEWEST).exists():  # not in the moment between the two renames
            assert assert_whole(checkpoint.read(tmp_path / checkpoint.PREVIOUS)) == number - 1
        reached = number


@pytest.mark.promise("atomic")
def test_flushed_before_renamed_and_folder_flushed_after(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, content(1))
    calls = []

    def noting(name, original):
        def patched(*args):
            if isinstance(args[0], int):
                calls.append((name, os.path.basename(os.readlink(f"/proc/self/fd/{args[0]}"))))
            else:
                calls.append((name, *map(os.path.basename, args)))
            return original(*args)
        monkeypatch.setattr(os, name, patched)

    noting("fsync", os.fsync)
    noting("replace", os.replace)
    checkpoint.save(tmp_path, content(2))
    assert calls == [("fsync", "checkpoint.pt.tmp"), ("replace", "checkpoint.pt", "checkpoint.previous.pt"),
                     ("replace", "checkpoint.pt.tmp", "checkpoint.pt"), ("fsync", tmp_path.name)]


@pytest.mark.promise("atomic")
def test_the_last_two_are_kept(tmp_path):
    for number in (1, 2, 3):
        checkpoint.save(tmp_path, content(number))
    assert assert_whole(checkpoint.read(tmp_path / checkpoint.NEWEST)) == 3
    assert assert_whole(checkpoint.read(tmp_path / checkpoint.PREVIOUS)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


def payload(whole: bytes) -> list[tuple[int, int]]:
    """(first, last) byte of every part's data in the zip, where they stand uncompressed."""
    with zipfile.ZipFile(io.BytesIO(whole)) as parts:
        found = [(part.header_offset + 30, parts.read(part)) for part in parts.infolist() if part.file_size]
    firsts = [(whole.index(data, after), len(data)) for after, data in found]           # a header has at least 30
    return [(first, first + size - 1) for first, size in firsts]


def damages(whole: bytes, ranges: list[tuple[int, int]]) -> list[bytes]:
    """7 truncations, one hole of zeros and 100 flipped bits in the payload."""
    draw, largest = random.Random(0), max(ranges, key=lambda r: r[1] - r[0])
    cases = [whole[:int(share * len(whole))] for share in (0, 0.01, 0.25, 0.5, 0.75, 0.99)]
    hole = largest[0] + 4096
    cases += [whole[:-1], whole[:hole] + bytes(65536) + whole[hole + 65536:]]
    for number in range(100):
        place, bit = draw.randint(*(draw.choice(ranges) if number % 2 else largest)), draw.randrange(8)
        cases.append(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1:])
    return cases


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    checkpoint.save(folder, content(1))
    checkpoint.save(folder, content(2))
    path = folder / checkpoint.NEWEST
    whole = path.read_bytes()
    return folder, path, damages(whole, payload(whole))


@pytest.mark.promise("last good")
@pytest.mark.parametrize("number", range(108))
def test_damage_is_found_and_the_one_before_is_used(two_checkpoints, number, capsys):
    folder, path, cases = two_checkpoints
    assert len(cases) == 108
    path.write_bytes(cases[number])
    assert assert_whole(checkpoint.newest(folder)) == 1
    err = capsys.readouterr().err
    assert str(path) in err and str(folder / checkpoint.PREVIOUS) in err and err.count("\n") == 1


@pytest.mark.promise("last good")
def test_a_damaged_one_never_takes_the_place_of_a_good_one(tmp_path):
    for number in (1, 2):
        checkpoint.save(tmp_path, content(number))
    (tmp_path / checkpoint.NEWEST).write_bytes(b"")
    checkpoint.save(tmp_path, content(3))
    assert assert_whole(checkpoint.read(tmp_path / checkpoint.PREVIOUS)) == 1
    assert assert_whole(checkpoint.newest(tmp_path)) == 3


@pytest.mark.promise("last good")
def test_both_damaged_names_both(tmp_path):
    for name in (checkpoint.NEWEST, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"checkpoint\.pt cannot .*checkpoint\.previous\.pt cannot "):
        checkpoint.newest(tmp_path)


class Hostile:
    """Unpickled by an ordinary unpickler, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def exchange_pickle(evil, path):
    """A real checkpoint whose pickle was exchanged, with the right checksums."""
    buffer = io.BytesIO()
    torch.save(content(1), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for part in source.infolist():
            swapped = pickle.dumps(evil, protocol=2)
            target.writestr(part.filename, swapped if part.filename.endswith("data.pkl") else source.read(part))


@pytest.mark.promise("nothing hostile")
@pytest.mark.parametrize("write", [
    torch.save, functools.partial(torch.save, _use_new_zipfile_serialization=False),
    lambda evil, path: path.write_bytes(pickle.dumps(evil)), exchange_pickle], ids=["zip", "legacy", "pickle", "swap"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, write):
    path, marker = tmp_path / checkpoint.NEWEST, tmp_path / "marker"
    write({"settings": {}, "model": Hostile(marker)}, path)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        checkpoint.read(path)
    assert not marker.exists()
    with suppress(RuntimeError):                    # the file is a real danger: an unsafe load does run its code
        torch.load(path, weights_only=False)
    assert marker.exists()


PICKLES = "pickle|dill|joblib|shelve|marshal"
UNSAFE = re.compile(
    rf"^(import|from) .*\b({PICKLES})\b|\b({PICKLES})\.(loads?|open|Unpickler)\(|allow_pickle=(?!False)"
    r"|\btorch\.load\((?!.*weights_only=True)|\b(jit|hub)\.load\(|\byaml\.(unsafe_|full_)?load\("
    r"|(?<![\w.])(?<!def )(eval|exec|load)\(")


def unsafe_loads(source: str) -> list[int]:
    """Lines that load with code execution: torch.load without weights_only=True, pickles, numpy's, eval and exec."""
    lines = ast.unparse(ast.parse(source)).splitlines()                 # a statement each, without comments
    return [number for number, line in enumerate(lines, 1) if UNSAFE.search(line.strip())]


@pytest.mark.promise("nothing hostile")
def test_the_source_has_no_unsafe_load():
    files = sorted([*(ROOT / "mpvg_minimal").glob("**/*.py"), *ROOT.glob("*.py")])
    assert len(files) > 15
    assert {path.name: lines for path in files if (lines := unsafe_loads(path.read_text()))} == {}
    loads = [path.name for path in files if "torch.load(" in path.read_text()]
    assert loads == ["checkpoint.py"]               # one place, where checksums are compared first


@pytest.mark.promise("nothing hostile")
@pytest.mark.parametrize("line", [
    "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=safe)",
    "import pickle", "from pickle import load", "pickle.loads(text)", "np.load(path, allow_pickle=True)",
    "eval(text)", "exec(text)", "torch.jit.load(path)", "yaml.load(text)", "torch.hub.load(name)"])
def test_the_scan_finds(line):
    assert unsafe_loads(line) == [1]


def plain(value) -> bool:
    if isinstance(value, dict):
        return type(value) in (dict, torch.nn.Module().state_dict().__class__) and all(
            type(key) in (str, int) and plain(entry) for key, entry in value.items())
    if type(value) in (list, tuple):
        return all(map(plain, value))
    return value is None or type(value) in (torch.Tensor, str, int, float, bool)


@pytest.mark.promise("nothing hostile")
def test_a_run_saves_plain_types_only(tmp_path):
    assert run(*SHAPES, "--epochs", 1, "--ema", 0.9, "--out", tmp_path).code == 0
    saved = checkpoint.read(tmp_path / checkpoint.NEWEST)
    assert plain(saved) and len(saved["history"]) == 1 and saved["ema"]
    assert not plain({"a": [tmp_path]})


@pytest.mark.promise("disk full")
@pytest.mark.parametrize("size", [0, 1000, 100_000, 599_000])
def test_disk_full_leaves_the_one_before(tmp_path, size):
    checkpoint.save(tmp_path, content(1))
    before = (tmp_path / checkpoint.NEWEST).read_bytes()
    assert len(before) > 600_000

    reading, writing = os.pipe()                    # no file: under this limit stderr's file is full too

    def save_into_too_little():
        small_files(size)()
        try:
            checkpoint.save(tmp_path, content(2))
        except UserError as error:
            os.write(writing, str(error).encode())

    assert in_child(save_into_too_little).code == 0
    os.close(writing)
    with open(reading) as pipe:
        message = pipe.read()
    assert "is the disk full? The checkpoint before it is intact" in message
    assert str(tmp_path / checkpoint.NEWEST) in message
    assert (tmp_path / checkpoint.NEWEST).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]      # no remains that fill the disk


@pytest.mark.promise("preemption")
def test_interrupted_during_a_save(tmp_path, monkeypatch):
    """By a second Ctrl-C, which comes at any line."""
    checkpoint.save(tmp_path, content(1))

    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, content(2))
    assert assert_whole(checkpoint.newest(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.promise("disk full")
def test_disk_full_in_a_run_that_then_goes_on(tmp_path):
    flags = (*SHAPES, "--epochs", 3, "--save-every", 0, "--out", tmp_path)
    stopped = run(*flags, fault=before(checkpoint, "save", 2, small_files(2_000_000)))       # a checkpoint has more
    one_line(stopped, "is the disk full? The checkpoint before it is intact")
    assert checkpoint.read(tmp_path / checkpoint.NEWEST)["epoch"] == 1
    assert run(*flags, "--resume").code == 0
    assert checkpoint.read(tmp_path / checkpoint.NEWEST)["epoch"] == 3
