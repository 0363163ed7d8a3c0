"""A run's folder: whose it is, how a run begins and goes on in it, and what happens when its files are damaged."""
import fcntl
import json
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
import torch
from runs import FOLDER, SHAPES, before, both, call, difference, ended, final, fork, one_line, run

import train_cifar
import train_imagenet
from mpvg_minimal.runtime.errors import UserError
from mpvg_minimal.training import checkpoint, folder, loop

RUN = (*SHAPES, "--epochs", 1)


@pytest.mark.promise("bad flags")
def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(tmp_path):
    """Also one that would go on with it; the loading processes of a killed run do not hold its folder."""
    reading, writing = os.pipe()

    def wait_in_the_first_step():
        os.close(writing)
        before(loop, "train_step", 1, lambda: os.read(reading, 1))()

    first = fork(call(*RUN, "--workers", 1, "--out", tmp_path, fault=wait_in_the_first_step))
    os.close(reading)
    try:
        while not (tmp_path / "config.json").exists():
            assert first.process.is_alive()
        one_line(run(*RUN, "--out", tmp_path, "--resume"), "another process is training in", "another --out")
        (tmp_path / "config.json").unlink()
        one_line(run(*RUN, "--out", tmp_path), "another process is training in")
    finally:
        first.process.kill()
    ended(first)
    os.close(writing)
    assert run(*RUN, "--out", tmp_path, "--resume").code == 0


@pytest.mark.promise("bad flags")
def test_a_file_system_without_locks_is_no_trouble(tmp_path):
    def fault():
        def no_locks(*_):
            raise OSError(37, "No locks available")
        fcntl.lockf = no_locks
    assert run(*RUN, "--out", tmp_path, fault=fault).code == 0


@pytest.mark.promise("exact resume")
@pytest.mark.parametrize("place", ["missing", "empty"])
def test_resume_begins_a_run_where_none_is(finished, tmp_path, place):
    """So one command can be queued again and again."""
    out = tmp_path if place == "empty" else tmp_path / "deep" / "out"
    end = run(*RUN, "--out", out, "--resume")
    assert (end.code, end.err) == (0, "") and f"{out} holds no run yet: beginning one" in end.out
    assert difference(final(out), final(finished / "shapes")) is None
    again = run(*RUN, "--out", out, "--resume")
    assert again.code == 0 and "beginning" not in again.out and "test accuracy" in again.out


def restarted(name: str, parent: int = 7):
    """As torchrun --max-restarts 1 starts a process for the second time."""
    def fault():
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": "0", "TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_RUN_ID": name}
        os.getppid = lambda: parent
        folder.distributed.join = train_cifar.distributed.join = lambda device: device
    return fault


@pytest.mark.promise("lost process")
@pytest.mark.parametrize("name, parent, same", [
    ("none", 7, True), ("none", 8, False), ("job 1", 8, True), ("job 2", 7, False)])
def test_a_restart_goes_on_only_with_its_own_run(tmp_path, name, parent, same):
    """After "holds a run already" torchrun starts the processes again: the run is still another one's."""
    first = restarted("none" if name == "none" else "job 1")
    fault = both(first, lambda: os.environ.update(TORCHELASTIC_RESTART_COUNT="0"))
    assert run(*RUN, "--out", tmp_path, fault=fault).code == 0
    end = run(*RUN, "--out", tmp_path, fault=restarted(name, parent))
    assert end.code == (0 if same else 2)
    assert same or "holds a run already: --resume" in end.err


@pytest.mark.promise("last good")
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"settings": 3, "data_dir": "data"}', '{"settings": {}}',
                                  "[" * 100_000, "\xff"])
def test_a_damaged_config_is_mended_from_the_checkpoint(finished, tmp_path, text):
    out = tmp_path / "run"
    shutil.copytree(finished / "shapes", out)
    whole = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(text, encoding="latin-1")
    assert run(*RUN, "--out", out, "--resume").code == 0
    assert json.loads((out / "config.json").read_text())["settings"] == whole["settings"]
    (out / "config.json").write_text(text, encoding="latin-1")
    for path in out.glob("checkpoint*"):
        path.unlink()
    one_line(run(*RUN, "--out", out, "--resume"), "config.json is missing or damaged", "another folder")


@pytest.mark.promise("mismatch")
def test_a_run_from_another_ones_weights_goes_on_without_them(finished, tmp_path):
    shutil.copytree(finished / "folder", tmp_path / "old")
    flags = (*FOLDER, "--data-dir", finished / "data", "--init", tmp_path / "old" / "checkpoint.pt", "--out",
             tmp_path / "new")
    assert run(*flags, "--epochs", 1).code == 0
    shutil.rmtree(tmp_path / "old")
    assert run(*flags, "--epochs", 2, "--resume").code == 0
    assert checkpoint.read(tmp_path / "new" / "checkpoint.pt")["epoch"] == 2
    one_line(run(*flags, "--epochs", 2), "old/checkpoint.pt cannot be read as a checkpoint")


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("flags", [
    ("--epochs", 3), ("--lr", 1), ("--ema", 0.9), ("--seed", 1), ("--loader", "workers"), ("--compile",),
    ("--out", "somewhere"), ("--resume",), ("--accumulate", 2), ("--cache", "somewhere"), ("--init", "x.pt")])
def test_eval_refuses_what_means_nothing_to_it(monkeypatch, flags):
    monkeypatch.setattr(sys, "argv", ["train_imagenet.py", "--eval", "checkpoint.pt", *map(str, flags)])
    with pytest.raises(UserError, match=f"--eval only tests: {flags[0]} means nothing to it"):
        train_imagenet.parse()


def test_eval_takes_the_batch_size(finished):
    def fault():
        original = train_imagenet.make_batches
        train_imagenet.make_batches = lambda *args, **options: print(
            "size", options["batch_size"]) or original(*args, **options)
    flags = ("train_imagenet", "--workers", 0, "--data-dir", finished / "data", "--eval",
             finished / "folder" / "checkpoint.pt")
    assert "size 3\n" in run(*flags, "--batch-size", 3, fault=fault).out
    assert "size 4\n" in run(*flags, fault=fault).out


CHANGES = {             # what an older, a newer or a foreign program would have saved in place of ours
    "no model": lambda saved: saved["settings"].pop("model"),
    "unknown model": lambda saved: saved["settings"].update(model="vit_of_next_year"),
    "wrong type": lambda saved: saved["settings"].update(image_size="large"),
    "no ema": lambda saved: (saved.pop("ema"), saved.pop("totals")),
    "fewer weights": lambda saved: saved["model"].pop("head.weight"),
    "other shapes": lambda saved: saved["model"].update({"head.weight": torch.zeros(3, 3)}),
    "no tensors": lambda saved: saved["model"].update(dict.fromkeys(saved["model"], 3)),
    "foreign": lambda saved: (saved.clear(), saved.update(settings={}, model={"conv.weight": torch.zeros(3)})),
}


@pytest.mark.promise("mismatch")
@pytest.mark.parametrize("use, change", [
    *[("eval", change) for change in CHANGES],
    *[(use, change) for use in ("init", "resume", "plots", "export") for change in ("no model", "other shapes")]])
def test_a_checkpoint_of_another_version_is_one_line(finished, tmp_path, change, use):
    out = tmp_path / "run"
    shutil.copytree(finished / "folder", out)
    path = out / "checkpoint.pt"
    saved = checkpoint.read(path)
    CHANGES[change](saved)
    torch.save(saved, path)
    data = ("--data-dir", finished / "data")
    flags = {"eval": ("train_imagenet", *data, "--workers", 0, "--eval", path),
             "init": (*FOLDER, *data, "--epochs", 1, "--init", path, "--out", tmp_path / "new"),
             "resume": (*FOLDER, *data, "--epochs", 2, "--out", out, "--resume"),
             "plots": ("mpvg_minimal.tools.plots", out), "export": ("mpvg_minimal.tools.export", out)}[use]
    one_line(run(*flags))


@pytest.mark.promise("nothing hostile")
def test_code_in_a_checkpoint_is_called_code(tmp_path):
    torch.save({"settings": {}, "model": Path(tmp_path)}, tmp_path / "checkpoint.pt")
    one_line(run("train_imagenet", "--eval", tmp_path / "checkpoint.pt"),
             "it holds code, not only tensors: do not load it", "pathlib")


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("flags, part", [
    ((*RUN, "--batch-size", 10 ** 9), "a batch of 1000000000 images of size 32 (--batch-size) needs at least"),
    ((*FOLDER, "--image-size", 65_528), "images of size 65528 (--"),
    ((*FOLDER, "--image-size", 10 ** 6), "must be at least 1 and at most 65535"),
    ((*RUN, "--workers", 10 ** 6), "must be at least 0 and at most "),
    ((*RUN, "--epochs", "9" * 600), "(600 characters)"),
    (("mpvg_minimal.tools.throughput", "--parts", "limit", "--matrix", 10 ** 8), "--matrix 100000000 needs at least"),
    (("mpvg_minimal.tools.throughput", "--parts", "batch", "--sizes", 10 ** 8), "a batch of 100000000 images needs"),
    (("mpvg_minimal.tools.cost", "--models", "vit_nano", "--batch-size", 10 ** 9), "--batch-size 1000000000 needs")])
def test_numbers_that_no_machine_has_are_refused_before_anything_is_allocated(tmp_path, flags, part):
    def little_memory():
        resource.setrlimit(resource.RLIMIT_AS, (2 ** 34, 2 ** 34))
    one_line(run(*flags, "--out", tmp_path / "out", fault=little_memory), part)
