"""Runs that are killed, or stopped by a signal, go on to the same result, bit for bit; a lost loader ends a run."""
import functools
import math
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import FOLDER, SHAPES, before, both, difference, final, image_folder, in_evaluation, one_line, run, send

import train_cifar
from mpvg_minimal.runtime import errors
from mpvg_minimal.training import checkpoint, loop, recipes
from mpvg_minimal.training.run import Run

STEPS = 6                                           # an epoch: 96 images in batches of 16, or 24 in batches of 4
THREE = ("--epochs", 3, "--save-every", 0)


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


PLAIN, MIXED = "plain", "EMA, mixing, dropout"
ALONE, LOADERS = "augmented, 0 workers", "augmented, 2 workers, EMA"
CONFIGS = {                                         # script and flags, what is changed in the child
    PLAIN: (SHAPES, None),
    MIXED: ((*SHAPES, "--ema", 0.9), mixed_and_averaged),
    "scaler": (SHAPES, cpu_scaler),
    ALONE: (FOLDER, None),
    LOADERS: ((*FOLDER, "--workers", 2, "--ema", 0.9), None),
}


def at(epoch: int, step: int | str, act) -> object:
    """A fault: `act` before this step of this epoch, both from 1, or after the first batch of its "evaluation"."""
    if step == "evaluation":
        return in_evaluation(epoch, act)
    return before(loop, "train_step", (epoch - 1) * STEPS + step, act)


KILL = send(signal.SIGKILL)
KILLS = {
    "mid-epoch": at(2, 4, KILL),
    "during evaluation": at(2, "evaluation", KILL),
    "epoch's end, before the save": before(Run, "save", 2, KILL),
    "epoch 1, no checkpoint": at(1, 4, KILL),
    "epoch's end, file half written": before(checkpoint.torch, "save", 2, KILL),
    "epoch's end, before the renames": before(
        os, "replace", 1, KILL, when=lambda _, target: str(target).endswith(checkpoint.PREVIOUS)),
    "epoch's end, between the renames": before(
        os, "replace", 2, KILL, when=lambda _, target: str(target).endswith(checkpoint.NEWEST)),
    "last epoch's end, before the metrics": before(Run, "write_metrics", 3, KILL),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function: a configuration's run of three epochs, in a child."""
    data = image_folder(tmp_path_factory.mktemp("data"))

    def start(name: str, out: Path, *flags, fault=None, **options):
        script, change = CONFIGS[name]
        folder = ("--data-dir", data) if script[0] == "train_imagenet" else ()
        return run(*script, *THREE, *folder, "--out", out, *flags, fault=both(change, fault), **options)
    return start


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """A function: the final state of a configuration's run that nothing disturbs; each is run once."""
    @functools.cache
    def result(name: str) -> dict:
        out = tmp_path_factory.mktemp("undisturbed")
        assert start(name, out).code == 0
        assert [line["epoch"] for line in final(out)["history"]] == [1, 2, 3]
        return final(out)
    return result


@pytest.fixture
def goes_on(start, undisturbed, tmp_path):
    """A function: resume the configuration's run in `tmp_path`; it ends as the run that nothing disturbed."""
    def goes_on(name: str, fault=None):
        resumed = start(name, tmp_path, "--resume", fault=fault)
        assert resumed.code == 0, resumed.err
        assert difference(final(tmp_path), undisturbed(name)) is None
        return resumed
    return goes_on


@pytest.mark.promise("exact resume")
@pytest.mark.parametrize("name, moment", [
    *[(PLAIN, moment) for moment in KILLS], *[(name, "mid-epoch") for name in list(CONFIGS)[1:]],
    *[pytest.param(name, moment, marks=pytest.mark.slow) for name in list(CONFIGS)[1:] for moment in list(KILLS)[1:3]]])
def test_killed_and_resumed(start, goes_on, tmp_path, name, moment):
    assert start(name, tmp_path, fault=KILLS[moment]).code == -signal.SIGKILL
    goes_on(name)


@pytest.mark.promise("exact resume")
def test_workers_may_differ_on_resume(start, goes_on, tmp_path):
    """Killed with 2 workers, resumed with none, equal to the run that had none; without EMA."""
    assert start(ALONE, tmp_path, "--workers", 2, fault=KILLS["mid-epoch"]).code == -signal.SIGKILL
    goes_on(ALONE)


@pytest.mark.promise("exact resume")
def test_what_is_compared_can_differ(start, undisturbed, tmp_path):
    """The other side of the tests above: a step's draws left out, and the comparison fails; so it sees something."""
    def other_draws():
        original = loop.seed_device
        loop.seed_device = lambda device, *key: original(device, *key, *["other"] * (key[2:4] == (2, STEPS - 1)))
    assert start(MIXED, tmp_path, fault=other_draws).code == 0
    found, expected = final(tmp_path), undisturbed(MIXED)
    assert difference(found["model"], expected["model"]) is not None        # by one step's draws alone
    assert difference(found["ema"], expected["ema"]) is not None
    scaled = undisturbed("scaler")
    assert scaled["scaler"]["scale"] != 1024 and scaled["updates"] == 3 * STEPS - 1
    assert set(expected) >= {"model", "optimizer", "ema", "scaler", "totals", "history", "updates"}


@pytest.mark.slow
@pytest.mark.promise("exact resume")
@pytest.mark.parametrize("step", range(2, 3 * STEPS + 1))
def test_killed_in_every_step(start, goes_on, tmp_path, step):
    assert start(PLAIN, tmp_path, fault=at(1, step, KILL)).code == -signal.SIGKILL
    goes_on(PLAIN)


def raises(error: BaseException):
    def act():
        raise error
    return act


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]
MOMENTS = ((1, 1), (2, 4), (3, STEPS))


@pytest.mark.promise("preemption")
@pytest.mark.parametrize("number, code, epoch, step", [
    *[(*SIGNALS[0], *moment) for moment in MOMENTS],
    *[pytest.param(*SIGNALS[1], *moment, marks=pytest.mark.slow) for moment in MOMENTS],
    *[(*number, 2, "evaluation") for number in SIGNALS]])
def test_interrupted_and_resumed(start, goes_on, tmp_path, number, code, epoch, step):
    stopped = start(MIXED, tmp_path, fault=at(epoch, step, send(number)))
    done = STEPS if step == "evaluation" else step
    one_line(stopped, f"saved in epoch {epoch} after step {done}: go on with --resume", code=code)
    saved = checkpoint.read(tmp_path / checkpoint.NEWEST)
    assert (saved["epoch"], saved["step"]) == (epoch - 1, done)
    resumed = goes_on(MIXED, before(loop, "train_step", None, lambda: print("a step")))
    assert resumed.out.count("a step\n") == (4 - epoch) * STEPS - done      # it went on, it did not begin again


@pytest.mark.promise("preemption")
@pytest.mark.parametrize("name", ["scaler", ALONE, LOADERS])
def test_interrupted_with_a_scaler_or_workers(start, goes_on, tmp_path, name):
    assert start(name, tmp_path, fault=at(2, 4, send(signal.SIGTERM))).code == 143
    goes_on(name)


@pytest.mark.promise("preemption")
@pytest.mark.parametrize("number, code", SIGNALS)
def test_a_signal_to_the_workers_too(start, goes_on, tmp_path, number, code):
    """torchrun and clusters signal the whole process group: the loading processes must outlive it."""
    group = at(2, 4, lambda: os.killpg(os.getpgrp(), number))
    one_line(start(LOADERS, tmp_path, fault=both(os.setpgrp, group), timeout=20), code=code)
    goes_on(LOADERS)


@pytest.mark.promise("preemption")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_an_ignored_signal_stays_ignored(start, undisturbed, tmp_path, number):
    """nohup starts a process in this way."""
    ignored = both(lambda: signal.signal(number, signal.SIG_IGN), at(2, 4, send(number)))
    assert start(PLAIN, tmp_path, fault=ignored).code == 0
    assert difference(final(tmp_path), undisturbed(PLAIN)) is None


@pytest.mark.promise("preemption")
def test_a_signal_that_comes_twice_is_one(start, tmp_path):
    twice = both(send(signal.SIGTERM), send(signal.SIGTERM))
    assert start(PLAIN, tmp_path, fault=at(2, 4, twice)).code == 143
    assert checkpoint.read(tmp_path / checkpoint.NEWEST)["step"] == 4


@pytest.mark.promise("preemption")
def test_a_later_second_signal_acts_at_once(start, tmp_path):
    insist = both(send(signal.SIGTERM), lambda: time.sleep(1.1), send(signal.SIGTERM))
    assert start(PLAIN, tmp_path, fault=at(2, 4, insist)).code == -signal.SIGTERM
    assert checkpoint.read(tmp_path / checkpoint.NEWEST)["step"] == 0


@pytest.mark.promise("preemption")
def test_interrupted_at_once_while_a_checkpoint_is_written(start, goes_on, tmp_path):
    """torch's writer, left before its end, writes when it is freed, and aborts if its file is closed by then."""
    fault = before(torch.serialization._open_zipfile_writer_buffer, "__exit__", 2, raises(KeyboardInterrupt()))
    one_line(start(PLAIN, tmp_path, fault=fault), "interrupted, nothing more was saved", code=130)
    goes_on(PLAIN)


# A process that loads images dies: one line and the end within 15 seconds, and the run can go on.

DIED = "error: a process that loads images died ("
LOADER = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
RESET = ConnectionResetError(104, "Connection reset by peer")


def kill_a_worker():
    multiprocessing.active_children()[0].kill()


@pytest.mark.promise("lost process")
@pytest.mark.parametrize("error", [RESET, EOFError()])
def test_a_worker_that_dies_while_it_hands_over_a_batch(start, tmp_path, error):
    """Then the main process may read from it before it hears of its death: the moment cannot be hit from outside.

    It is the first batch of a test. The workers have just been started, and must not miss that the run ends.
    """
    late = before(torch.utils.data._utils.signal_handling, "_set_worker_signal_handlers", None, lambda: time.sleep(0.3))
    end = start(LOADERS, tmp_path, fault=both(late, before(LOADER, "_next_data", 8, raises(error))), timeout=15)
    one_line(end, DIED + type(error).__name__, code=1)


@pytest.mark.promise("lost process")
def test_a_worker_that_dies_while_a_checkpoint_is_written(start, goes_on, tmp_path):
    fault = before(torch.serialization._open_zipfile_writer_buffer, "__exit__", 2, kill_a_worker)
    one_line(start(LOADERS, tmp_path, fault=fault, timeout=15), DIED, code=1)
    goes_on(LOADERS)


@pytest.mark.promise("lost process")
@pytest.mark.parametrize("first", [at(2, 2, kill_a_worker), before(LOADER, "_next_data", 8, raises(RESET))])
def test_a_worker_that_dies_while_the_user_is_told_of_another(start, tmp_path, first):
    second = before(errors, "as_user_error", 1, both(kill_a_worker, lambda: time.sleep(0.2)))
    end = start(LOADERS, tmp_path, fault=both(first, second), timeout=15)
    assert end.code == 1 and end.err.count(DIED) == 1 and "as_user_error" not in end.err


@pytest.mark.promise("lost process")
@pytest.mark.parametrize("step", [2, "evaluation"])
def test_a_killed_worker(start, goes_on, tmp_path, step):
    kill = at(2, step, kill_a_worker)
    slowly = before(loop, "train_step", None, lambda: time.sleep(0.2))
    end = start(LOADERS, tmp_path, fault=both(kill, slowly), timeout=15)
    assert end.seconds < 15 and end.code == 1
    # In one line of the main process; the other worker may add its own complaint about the lost connection.
    assert end.err.count(DIED) == len([line for line in end.err.splitlines() if line.startswith("error: ")]) == 1
    goes_on(LOADERS)
