"""Runs that are killed or interrupted go on to the same result, bit for bit; a lost process ends a run at once."""
import contextlib
import functools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from runs import before, difference, final, image_folder, in_evaluation, run, run_ranks, send

import train_cifar
from mpvg_minimal.data import sources
from mpvg_minimal.training import checkpoint, loop, recipes
from mpvg_minimal.training.run import Run

KILL = send(signal.SIGKILL)
STEPS = 6                                           # an epoch: 96 images in batches of 16
MODEL = ("--gap", "--mpvg", "--epochs", 3, "--save-every", 0)
SHAPES = ("train_cifar", "--dataset", "shapes", *MODEL, "--batch-size", 16, "--workers", 0)
FOLDER = ("train_imagenet", "--model", "vit_nano", "--image-size", 32, *MODEL, "--batch-size", 4)


def cpu_scaler():
    """A stand-in for fp16 on a GPU: the loss is scaled, and one step in epoch 2 overflows and is skipped."""
    original = train_cifar.start_run

    def start_run(*args, **options):
        run = original(*args, **options)
        run.scaler = torch.amp.GradScaler("cpu", init_scale=1024, growth_interval=4)
        run.model.head.register_full_backward_pre_hook(
            lambda _, gradients: tuple(g * math.inf for g in gradients) if (run.epoch, run.step) == (1, 3) else None)
        return run
    train_cifar.start_run = start_run


def mixed_and_averaged():
    """Shapes with mixup, cutmix, label smoothing, dropout and an EMA, none of which their recipe has."""
    recipes.SHAPES = replace(recipes.SHAPES, mixup=0.8, cutmix=1.0, label_smoothing=0.1, stochastic_depth=0.1,
                             attention_dropout=0.1)


CONFIGS = {                                         # script and flags, what is changed in the child
    "plain": (SHAPES, None),
    "EMA, mixing, dropout": ((*SHAPES, "--ema", 0.9), mixed_and_averaged),
    "scaler": (SHAPES, cpu_scaler),
    "augmented, 0 workers": ((*FOLDER, "--workers", 0), None),
    "augmented, 2 workers, EMA": ((*FOLDER, "--workers", 2, "--ema", 0.9), None),
}
to_previous = dict(when=lambda _, target: str(target).endswith(checkpoint.PREVIOUS))
to_newest = dict(when=lambda _, target: str(target).endswith(checkpoint.NEWEST))
KILLS = {
    "epoch 1, no checkpoint": before(loop, "train_step", 4, KILL),
    "mid-epoch": before(loop, "train_step", STEPS + 4, KILL),
    "during evaluation": in_evaluation(2, KILL),
    "epoch's end, before the save": before(Run, "save", 2, KILL),
    "epoch's end, file half written": before(checkpoint.torch, "save", 2, KILL),
    "epoch's end, before the renames": before(os, "replace", 1, KILL, **to_previous),
    "epoch's end, between the renames": before(os, "replace", 2, KILL, **to_newest),
    "last epoch's end, before the metrics": before(Run, "write_metrics", 3, KILL),
}
MAIN_KILLS = ("mid-epoch", "during evaluation", "epoch's end, before the save")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A function: the final state of a configuration's run that nothing disturbs; each is run once."""
    folder = tmp_path_factory.mktemp("data")
    image_folder(folder)

    @functools.cache
    def result(name: str):
        out = tmp_path_factory.mktemp("undisturbed")
        script, change = with_data(CONFIGS[name], folder)
        assert run(*script, "--out", out, fault=change).code == 0
        return state(out)
    result.folder = folder
    return result


def with_data(config, folder):
    (script, *flags), change = config
    return (script, *flags, *(("--data-dir", folder) if script == "train_imagenet" else ())), change


def state(out: Path) -> dict:
    """What must be equal: the checkpoint and, apart from the timings, metrics.jsonl."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    saved = final(out)
    assert [{key: line[key] for key in saved["history"][0]} for line in lines] == saved["history"]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    return saved


def both(first, second):
    def fault():
        for change in filter(None, (first, second)):
            change()
    return fault


def assert_same(out: Path, expected: dict) -> None:
    assert difference(state(out), expected) is None


@pytest.mark.promise("exact resume")
@pytest.mark.parametrize("name, moment", [
    *[("plain", moment) for moment in KILLS],
    *[(name, moment) for name in list(CONFIGS)[1:] for moment in MAIN_KILLS]])
def test_killed_and_resumed(undisturbed, tmp_path, name, moment):
    script, change = with_data(CONFIGS[name], undisturbed.folder)
    killed = run(*script, "--out", tmp_path, fault=both(change, KILLS[moment]))
    assert killed.code == -signal.SIGKILL
    resumed = run(*script, "--out", tmp_path, "--resume", fault=change)
    assert resumed.code == 0, resumed.err
    assert_same(tmp_path, undisturbed(name))


@pytest.mark.promise("exact resume")
def test_workers_may_differ_on_resume(undisturbed, tmp_path):
    """Killed with 2 workers, resumed with none, equal to the run that had none; without EMA."""
    script, _ = with_data(CONFIGS["augmented, 0 workers"], undisturbed.folder)
    assert run(*script, "--workers", 2, "--out", tmp_path, fault=KILLS["mid-epoch"]).code == -signal.SIGKILL
    assert run(*script, "--out", tmp_path, "--resume").code == 0
    assert_same(tmp_path, undisturbed("augmented, 0 workers"))


@pytest.mark.promise("exact resume")
def test_what_is_compared_can_differ(undisturbed, tmp_path):
    """The other side of the tests above: a step's draws left out, and the comparison fails; so it sees something."""
    script, change = CONFIGS["EMA, mixing, dropout"]

    def other_draws():
        original = loop.seed_device
        loop.seed_device = lambda device, *key: original(device, *key, *["other"] * (key[2:4] == (2, STEPS - 1)))
    assert run(*script, "--out", tmp_path, fault=both(change, other_draws)).code == 0
    expected = undisturbed("EMA, mixing, dropout")
    assert difference(final(tmp_path)["model"], expected["model"]) is not None      # by one step's draws alone
    assert difference(final(tmp_path)["ema"], expected["ema"]) is not None
    scaler = undisturbed("scaler")["scaler"]
    assert scaler["scale"] != 1024 and undisturbed("scaler")["updates"] == 3 * STEPS - 1
    assert {key for key in expected} >= {"model", "optimizer", "ema", "scaler", "totals", "history", "updates"}


@pytest.mark.slow
@pytest.mark.promise("exact resume")
def test_killed_in_every_step(undisturbed, tmp_path):
    script, _ = CONFIGS["plain"]
    for step in range(2, 3 * STEPS + 1):
        out = tmp_path / str(step)
        assert run(*script, "--out", out, fault=before(loop, "train_step", step, KILL)).code == -signal.SIGKILL
        assert run(*script, "--out", out, "--resume").code == 0
        assert_same(out, undisturbed("plain"))


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]


@pytest.mark.promise("preemption")
@pytest.mark.parametrize("number, code, moment, epoch, step", [
    *[(*number, *moment) for number in SIGNALS[:2]
      for moment in (("first step", 0, 1), ("mid-epoch", 1, 4), ("last step", 2, STEPS))],
    *[(*number, "evaluation", 1, STEPS) for number in SIGNALS]])
def test_interrupted_and_resumed(undisturbed, tmp_path, number, code, moment, epoch, step):
    script, change = CONFIGS["EMA, mixing, dropout"]
    fault = in_evaluation(2, send(number)) if moment == "evaluation" else before(
        loop, "train_step", epoch * STEPS + step, send(number))
    stopped = run(*script, "--out", tmp_path, fault=both(change, fault))
    assert (stopped.code, stopped.err.count("\n")) == (code, 1)
    assert f"saved in epoch {epoch + 1} after step {step}: go on with --resume" in stopped.err
    saved = checkpoint.read(tmp_path / checkpoint.NEWEST)
    assert (saved["epoch"], saved["step"]) == (epoch, step)
    steps = tmp_path / "steps"

    def count_steps():
        before(loop, "train_step", -1, lambda: None, when=lambda *_, **__: steps.open("a").write("."))()

    assert run(*script, "--out", tmp_path, "--resume", fault=both(change, count_steps)).code == 0
    left = (3 - epoch) * STEPS - step
    assert (len(steps.read_text()) if steps.exists() else 0) == left        # it went on, it did not begin again
    assert_same(tmp_path, undisturbed("EMA, mixing, dropout"))


@pytest.mark.promise("preemption")
@pytest.mark.parametrize("name", ["scaler", "augmented, 0 workers", "augmented, 2 workers, EMA"])
def test_interrupted_with_a_scaler_or_workers(undisturbed, tmp_path, name):
    script, change = with_data(CONFIGS[name], undisturbed.folder)
    fault = before(loop, "train_step", STEPS + 4, send(signal.SIGTERM))
    assert run(*script, "--out", tmp_path, fault=both(change, fault)).code == 143
    assert run(*script, "--out", tmp_path, "--resume", fault=change).code == 0
    assert_same(tmp_path, undisturbed(name))


@pytest.mark.promise("preemption")
@pytest.mark.parametrize("number, code", SIGNALS)
def test_a_signal_to_the_workers_too(undisturbed, tmp_path, number, code):
    """torchrun and clusters signal the whole process group: the loading processes must outlive it."""
    script, _ = with_data(CONFIGS["augmented, 2 workers, EMA"], undisturbed.folder)

    def group():
        os.setpgrp()
        kill = [sys.executable, "-S", "-c", f"import os; os.killpg({os.getpgrp()}, {int(number)})"]
        before(loop, "train_step", STEPS + 4, lambda: subprocess.run(kill, check=True, start_new_session=True))()

    stopped = run(*script, "--out", tmp_path, fault=group, timeout=20)
    assert (stopped.code, stopped.err.count("\n")) == (code, 1)
    assert run(*script, "--out", tmp_path, "--resume").code == 0
    assert_same(tmp_path, undisturbed("augmented, 2 workers, EMA"))


@pytest.mark.promise("preemption")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_an_ignored_signal_stays_ignored(undisturbed, tmp_path, number):
    """nohup starts a process in this way."""
    def fault():
        signal.signal(number, signal.SIG_IGN)
        before(loop, "train_step", STEPS + 4, send(number))()
    script, _ = CONFIGS["plain"]
    assert run(*script, "--out", tmp_path, fault=fault).code == 0
    assert_same(tmp_path, undisturbed("plain"))


@pytest.mark.promise("preemption")
def test_a_signal_that_comes_twice_is_one(undisturbed, tmp_path):
    def twice():
        send(signal.SIGTERM)()
        send(signal.SIGTERM)()
    script, _ = CONFIGS["plain"]
    assert run(*script, "--out", tmp_path, fault=before(loop, "train_step", STEPS + 4, twice)).code == 143
    assert checkpoint.read(tmp_path / checkpoint.NEWEST)["step"] == 4


@pytest.mark.promise("preemption")
def test_a_later_second_signal_acts_at_once(tmp_path):
    def insist():
        send(signal.SIGTERM)()
        time.sleep(1.1)
        send(signal.SIGTERM)()
    script, _ = CONFIGS["plain"]
    stopped = run(*script, "--out", tmp_path, fault=before(loop, "train_step", STEPS + 4, insist))
    assert stopped.code == -signal.SIGTERM
    assert checkpoint.read(tmp_path / checkpoint.NEWEST)["step"] == 0


def ranks_state(tmp_path, name, *, faults=(None, None), resume=()):
    ends = run_ranks(*SHAPES, "--out", tmp_path / name, *resume, faults=faults)
    return ends, tmp_path / name


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    ends, out = ranks_state(tmp_path_factory.mktemp("ranks"), "undisturbed")
    assert [end.code for end in ends] == [0, 0]
    return state(out)


@pytest.mark.promise("preemption")
@pytest.mark.parametrize("number, code", SIGNALS[:2])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("moment, epoch, step", [("mid-epoch", 1, 4), ("evaluation", 1, STEPS)])
def test_one_rank_is_interrupted_and_all_agree(two_ranks, tmp_path, number, code, rank, moment, epoch, step):
    fault = in_evaluation(2, send(number)) if moment == "evaluation" else before(
        loop, "train_step", epoch * STEPS + step, send(number))
    faults = (fault, None) if rank == 0 else (None, fault)
    ends, out = ranks_state(tmp_path, "interrupted", faults=faults)
    for place, end in enumerate(ends):
        assert (end.code, end.err.count("\n")) == (code, 1), end.err
        assert f"[rank {place}] error" in end.err and f"saved in epoch {epoch + 1} after step {step}:" in end.err
    ends, _ = ranks_state(tmp_path, "interrupted", resume=("--resume",))
    assert [end.code for end in ends] == [0, 0], ends[0].err
    assert_same(out, two_ranks)


@pytest.mark.promise("exact resume")
def test_both_ranks_are_killed_and_resumed(two_ranks, tmp_path):
    ends, out = ranks_state(tmp_path, "killed", faults=(KILLS["mid-epoch"], KILLS["mid-epoch"]))
    assert [end.code for end in ends] == [-signal.SIGKILL] * 2
    ends, _ = ranks_state(tmp_path, "killed", resume=("--resume",))
    assert [end.code for end in ends] == [0, 0]
    assert_same(out, two_ranks)


@pytest.mark.promise("preemption")
def test_ranks_without_a_common_folder_are_refused(tmp_path):
    """The second process finds no checkpoint where the first one does: they would train two different models."""
    ends, out = ranks_state(tmp_path, "out", faults=(KILLS["mid-epoch"], KILLS["mid-epoch"]))

    def own_folder():
        original = train_cifar.choose_out
        train_cifar.choose_out = lambda *args, **options: (original(*args, **options), tmp_path / "empty")[1]

    (tmp_path / "empty").mkdir()
    ends, _ = ranks_state(tmp_path, "out", resume=("--resume",), faults=(None, own_folder))
    assert ends[1].code == 2 and "has to be a folder that all of them share" in ends[1].err
    assert ends[0].code != 0


# Processes from a shell: what the tests above do inside a fork, once more as a user would meet it.

SCRIPT_FLAGS = ["--dataset", "shapes", "--gap", "--mpvg", "--limit", "512", "--batch-size", "16", "--epochs", "3",
                "--save-every", "0"]


def shell(*command, **options) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def torchrun(*flags, restarts: int = 0, script: Path = ROOT / "train_cifar.py") -> subprocess.Popen:
    return shell(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
                 "--max-restarts", restarts, script, *flags)


def wait_for_an_epoch(process: subprocess.Popen, out: Path) -> None:
    end = time.monotonic() + 90
    while not lines_in(out):
        assert process.poll() is None, process.communicate()
        if time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)          # a session of its own: see shell()
            raise AssertionError(f"no epoch in 90 s: {process.communicate()}")
        time.sleep(0.02)


def lines_in(out: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return len((out / "metrics.jsonl").read_text().splitlines())
    return 0


def real_data():
    """In a fork: the data set as the scripts see it outside of the tests."""
    sources.open_shapes = OPEN_SHAPES


OPEN_SHAPES = sources.open_shapes


@pytest.mark.promise("preemption")
def test_script_from_a_shell_is_terminated_and_resumed(tmp_path):
    process = shell(sys.executable, "train_cifar.py", *SCRIPT_FLAGS, "--workers", 0, "--out", tmp_path / "a")
    wait_for_an_epoch(process, tmp_path / "a")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143 and err.count("error:") == 1 and "Traceback" not in err
    flags = ("train_cifar", *SCRIPT_FLAGS, "--workers", 0, "--out")
    assert run(*flags, tmp_path / "a", "--resume", fault=real_data).code == 0
    assert run(*flags, tmp_path / "b", fault=real_data).code == 0
    assert_same(tmp_path / "a", state(tmp_path / "b"))


@pytest.fixture(scope="module")
def two_ranks_of_the_script(tmp_path_factory):
    out = tmp_path_factory.mktemp("script") / "out"
    ends = run_ranks("train_cifar", *SCRIPT_FLAGS, "--workers", 1, "--out", out, faults=(real_data, real_data))
    assert [end.code for end in ends] == [0, 0]
    return state(out)


@pytest.mark.promise("preemption")
def test_torchrun_is_terminated_and_resumed(two_ranks_of_the_script, tmp_path):
    """torchrun signals the ranks' groups, so the loading processes get it too."""
    out = tmp_path / "out"
    process = torchrun(*SCRIPT_FLAGS, "--workers", 1, "--out", out)
    wait_for_an_epoch(process, out)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=40)
    assert process.returncode != 0
    assert err.count("interrupted by signal 15, saved in epoch") == 2
    saved = checkpoint.read(out / checkpoint.NEWEST)
    assert 1 <= saved["epoch"] < 3 and saved["step"] > 0
    ends = run_ranks("train_cifar", *SCRIPT_FLAGS, "--workers", 1, "--out", out, "--resume",
                     faults=(real_data, real_data))
    assert [end.code for end in ends] == [0, 0], ends[0].err
    assert_same(out, two_ranks_of_the_script)


KILLED_ONCE = """
import os, runpy, signal, sys
from mpvg_minimal.training import loop
original, calls = loop.train_step, []
def train_step(*args, **options):
    calls.append(1)
    if len(calls) == 40 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    original(*args, **options)
loop.train_step = train_step
sys.argv[0] = "train_cifar.py"
runpy.run_path("train_cifar.py", run_name="__main__")
"""


@pytest.mark.promise("lost process")
def test_torchrun_restarts_after_a_killed_rank(two_ranks_of_the_script, tmp_path):
    driver, out = tmp_path / "driver.py", tmp_path / "out"
    driver.write_text(KILLED_ONCE)
    process = torchrun(*SCRIPT_FLAGS, "--workers", 1, "--out", out, restarts=1, script=driver)
    wait_for_an_epoch(process, out)                    # 32 steps an epoch: the kill comes 8 steps later
    _, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert "exitcode: -9" in err and "local_rank: 1" in err         # torchrun names the cause
    assert_same(out, two_ranks_of_the_script)


@pytest.mark.slow
@pytest.mark.promise("lost process")
def test_torchrun_without_restarts_ends(tmp_path):
    driver, out = tmp_path / "driver.py", tmp_path / "out"
    driver.write_text(KILLED_ONCE)
    process = torchrun(*SCRIPT_FLAGS, "--workers", 1, "--out", out, script=driver)
    wait_for_an_epoch(process, out)
    saved = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0 and time.monotonic() - saved < 15
    assert "SIGKILL" in err and "exitcode  : -9" in err


@pytest.mark.promise("lost process")
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("moment", ["training", "evaluation"])
def test_a_killed_rank_ends_the_other(tmp_path, killed, moment):
    fault = KILLS["mid-epoch"] if moment == "training" else KILLS["during evaluation"]
    ends, _ = ranks_state(tmp_path, "out", faults=(fault, None) if killed == 0 else (None, fault))
    assert ends[killed].code == -signal.SIGKILL
    assert ends[1 - killed].code == 1 and ends[1 - killed].seconds < 15
    assert " by peer" in ends[1 - killed].err               # gloo: connection closed, or reset, by peer


def kill_a_worker():
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


@pytest.mark.promise("lost process")
@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_hands_over_a_batch(undisturbed, tmp_path, error):
    """Then the main process may read from it before it hears of its death: the moment cannot be hit from outside."""
    script, _ = with_data(CONFIGS["augmented, 2 workers, EMA"], undisturbed.folder)

    def dies():
        raise error
    fault = before(torch.utils.data.dataloader._MultiProcessingDataLoaderIter, "_next_data", 8, dies)
    ended = run(*script, "--out", tmp_path, fault=fault, timeout=15)
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert ended.err.startswith(f"error: a process that loads images died ({type(error).__name__}")


@pytest.mark.promise("lost process")
def test_a_worker_that_dies_while_a_checkpoint_is_written(undisturbed, tmp_path):
    """torch's writer, left before its end, writes when it is freed, and aborts if its file is closed by then."""
    script, _ = with_data(CONFIGS["augmented, 2 workers, EMA"], undisturbed.folder)

    def dies():
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")    # from torch's SIGCHLD handler
    fault = before(torch.serialization._open_zipfile_writer_buffer, "__exit__", 2, dies)
    ended = run(*script, "--out", tmp_path, fault=fault, timeout=15)
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert ended.err.startswith("error: a process that loads images died (")
    assert run(*script, "--out", tmp_path, "--resume").code == 0
    assert_same(tmp_path, undisturbed("augmented, 2 workers, EMA"))


@pytest.mark.promise("lost process")
@pytest.mark.parametrize("moment", ["training", "evaluation"])
def test_a_killed_worker(undisturbed, tmp_path, moment):
    script, _ = with_data(CONFIGS["augmented, 2 workers, EMA"], undisturbed.folder)
    fault = (before(loop, "train_step", STEPS + 2, kill_a_worker) if moment == "training"
             else in_evaluation(2, kill_a_worker))

    def slowly():
        fault()
        before(loop, "train_step", -1, lambda: None, when=lambda *_, **__: time.sleep(0.2))()

    ended = run(*script, "--out", tmp_path, fault=slowly, timeout=15)
    assert ended.seconds < 15 and ended.code == 1
    # In one line of the main process; the other worker may add its own complaint about the lost connection.
    assert "error: a process that loads images died (" in ended.err
    assert len([line for line in ended.err.splitlines() if line.startswith("error: ")]) == 1
    assert run(*script, "--out", tmp_path, "--resume").code == 0
    assert_same(tmp_path, undisturbed("augmented, 2 workers, EMA"))
