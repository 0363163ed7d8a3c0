"""Runs in two processes, and from a shell: stopped, killed, restarted by torchrun, and the end is the same run's."""
import logging
import multiprocessing.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from runs import SHAPES, Ended, call, difference, final, in_child, run, run_ranks, send
from test_resume import KILLS, SIGNALS, STEPS, THREE, at
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import train_cifar
from mpvg_minimal.data import sources
from mpvg_minimal.training import checkpoint


def start(out: Path, *flags, faults=(None, None)) -> list[Ended]:
    return run_ranks(*SHAPES, *THREE, "--out", out, *flags, faults=faults)


def only(rank: int, fault) -> tuple:
    """For each of two ranks its fault."""
    return (fault, None) if rank == 0 else (None, fault)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The final state of a run in two processes that nothing disturbs."""
    out = tmp_path_factory.mktemp("ranks")
    assert [end.code for end in start(out)] == [0, 0]
    return final(out)


@pytest.mark.promise("preemption")
@pytest.mark.parametrize("number, code", [SIGNALS[0], pytest.param(*SIGNALS[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("step", [4, "evaluation"])
def test_one_rank_is_interrupted_and_all_agree(two_ranks, tmp_path, number, code, rank, step):
    ends = start(tmp_path, faults=only(rank, at(2, step, send(number))))
    for place, end in enumerate(ends):
        assert (end.code, end.err.count("\n")) == (code, 1), end.err
        done = STEPS if step == "evaluation" else step
        assert f"[rank {place}] error" in end.err and f"saved in epoch 2 after step {done}:" in end.err
    ends = start(tmp_path, "--resume")
    assert [end.code for end in ends] == [0, 0], ends[0].err
    assert difference(final(tmp_path), two_ranks) is None


@pytest.mark.promise("exact resume")
def test_both_ranks_are_killed_and_resumed(two_ranks, tmp_path):
    killed = start(tmp_path, faults=(KILLS["mid-epoch"], KILLS["mid-epoch"]))
    assert [end.code for end in killed] == [-signal.SIGKILL] * 2
    assert [end.code for end in start(tmp_path, "--resume")] == [0, 0]
    assert difference(final(tmp_path), two_ranks) is None


@pytest.mark.promise("preemption")
def test_ranks_without_a_common_folder_are_refused(tmp_path):
    """The second process finds no checkpoint where the first one does: they would train two different models."""
    start(tmp_path / "out", faults=(KILLS["mid-epoch"], KILLS["mid-epoch"]))

    def own_folder():
        original = train_cifar.choose_out
        train_cifar.choose_out = lambda *args, **options: (original(*args, **options), tmp_path / "empty")[1]

    (tmp_path / "empty").mkdir()
    first, second = start(tmp_path / "out", "--resume", faults=(None, own_folder))
    assert second.code == 2 and "has to be a folder that all of them share" in second.err
    assert first.code != 0


@pytest.mark.promise("lost process")
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("moment", ["mid-epoch", "during evaluation"])
def test_a_killed_rank_ends_the_other(tmp_path, killed, moment):
    ends = start(tmp_path, faults=only(killed, KILLS[moment]))
    assert ends[killed].code == -signal.SIGKILL
    assert ends[1 - killed].code == 1 and ends[1 - killed].seconds < 15
    assert " by peer" in ends[1 - killed].err               # gloo: connection closed, or reset, by peer


def torchruns_agent(out: Path, restarts: int) -> None:
    """What torchrun does after reading its flags; its two ranks are forks, and the second one is killed once.

    The first one then ends by itself, a second later than it would: the agent names the end that it sees first.
    """
    def killed_once():
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            if os.environ["RANK"] == "1":
                KILLS["mid-epoch"]()
            else:
                multiprocessing.util.Finalize(None, time.sleep, args=(1,), exitpriority=0)
    logging.getLogger("torch.distributed").addHandler(logging.StreamHandler(sys.stderr))    # pytest has torch's own
    config = LaunchConfig(1, 1, 2, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
                          max_restarts=restarts, start_method="fork")
    elastic_launch(config, call(*SHAPES, *THREE, "--out", out, fault=killed_once))()


@pytest.mark.promise("lost process")
def test_torchrun_restarts_after_a_killed_rank(two_ranks, tmp_path):
    end = in_child(lambda: torchruns_agent(tmp_path, restarts=1))
    assert end.code == 0, end.err
    assert "exitcode: -9" in end.err and "local_rank: 1" in end.err         # torchrun names the cause
    assert difference(final(tmp_path), two_ranks) is None


@pytest.mark.slow
@pytest.mark.promise("lost process")
def test_torchrun_without_restarts_ends(tmp_path):
    end = in_child(lambda: torchruns_agent(tmp_path, restarts=0), timeout=15)
    assert end.code == 1 and "SIGKILL" in end.err and "exitcode  : -9" in end.err


# From a shell: what the tests above do inside a fork, once more as a user would meet it.

FLAGS = ("--dataset", "shapes", "--gap", "--mpvg", "--limit", 512, "--batch-size", 16, *THREE)


@pytest.fixture(scope="module")
def real_data():
    """A fault: the data set as the scripts see it outside of the tests; drawn here, once for all children."""
    shapes = sources.open_shapes()
    return lambda: setattr(sources, "open_shapes", lambda: shapes)


def terminated_after_an_epoch(out: Path, *command) -> tuple[int, str]:
    """Start a command, send it SIGTERM as soon as an epoch is through. Returns its exit code and stderr."""
    process = subprocess.Popen([sys.executable, *map(str, command), "--out", str(out)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 90
    while not (out / "metrics.jsonl").exists():
        if process.poll() is not None or time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)              # a session of its own: only its processes
            raise AssertionError(f"no epoch in 90 s: {process.communicate()}")
        time.sleep(0.02)
    process.terminate()
    err = process.communicate(timeout=40)[1]
    return process.returncode, err


@pytest.mark.promise("preemption")
def test_script_from_a_shell_is_terminated_and_resumed(real_data, tmp_path):
    flags = (*FLAGS, "--workers", 0)
    code, err = terminated_after_an_epoch(tmp_path / "a", "train_cifar.py", *flags)
    assert code == 143 and err.count("error:") == 1 and "Traceback" not in err
    assert run("train_cifar", *flags, "--out", tmp_path / "a", "--resume", fault=real_data).code == 0
    assert run("train_cifar", *flags, "--out", tmp_path / "b", fault=real_data).code == 0
    assert difference(final(tmp_path / "a"), final(tmp_path / "b")) is None


@pytest.mark.slow
@pytest.mark.promise("preemption")
def test_torchrun_is_terminated_and_resumed(real_data, tmp_path):
    """torchrun signals the ranks' groups, so the loading processes get it too."""
    flags, real = (*FLAGS, "--workers", 1, "--out"), (real_data, real_data)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    code, err = terminated_after_an_epoch(tmp_path / "a", *torchrun, "train_cifar.py", *flags[:-1])
    assert code != 0 and err.count("interrupted by signal 15, saved in epoch") == 2
    saved = checkpoint.read(tmp_path / "a" / checkpoint.NEWEST)
    assert 1 <= saved["epoch"] < 3 and saved["step"] > 0
    ends = run_ranks("train_cifar", *flags, tmp_path / "a", "--resume", faults=real)
    assert [end.code for end in ends] == [0, 0], ends[0].err
    assert [end.code for end in run_ranks("train_cifar", *flags, tmp_path / "b", faults=real)] == [0, 0]
    assert difference(final(tmp_path / "a"), final(tmp_path / "b")) is None
