"""Memory, shared memory or open files that are used up: one line that says what to lower, and exit code 1."""
import ctypes
import errno
import os
import resource
import shutil
import subprocess

import numpy as np
import pytest
import torch
from runs import FOLDER, SHAPES, one_line, run

from mpvg_minimal.runtime.errors import Exhausted, exhausted, one_line_errors

MACHINE, GPU = "error: the memory of this machine is not enough", "error: the memory of the GPU is not enough"
SHARED, FILES = "error: the shared memory of this machine, /dev/shm, is too small", "error: more files are open than"


@pytest.mark.parametrize("failure, line, advice", [                             # an error, or what raises one:
    (lambda: torch.empty(2 ** 46), MACHINE, "--batch-size"),                    # more than a process can address
    (lambda: np.zeros(2 ** 46), MACHINE, "--workers"),
    (lambda: bytearray(2 ** 48), MACHINE, "--model"),
    (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), MACHINE, "--workers"),
    (MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Tra"), MACHINE, "lower"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), GPU, "2.00 GiB"),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), GPU, "--batch-size"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), GPU, "--accumulate"),
    (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), GPU, "--image-size"),
    (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  "
                  "File\nRuntimeError: unable to write to file </torch_17_1_0>: No space left on device (28)"), SHARED,
     "--shm-size"),
    (RuntimeError("DataLoader worker (pid 17) is killed by signal: Bus error. It is possible that dataloader's workers "
                  "are out of shared memory. Please try to"), SHARED, "--workers 0"),
    (RuntimeError("Too many open files. Communication with the workers is no longer possible."), FILES, "ulimit -n")])
def test_what_is_used_up_is_one_line(failure, line, advice, capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        if isinstance(failure, Exception):
            raise failure
        failure()
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(line) and advice in err, err


@pytest.mark.parametrize("error", [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), OSError(2, "No such file"),
    RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448")])
def test_a_mistake_of_ours_is_not_taken_for_that(error):
    """The last one is Triton's: its shared memory is the GPU's."""
    assert exhausted(error) is None
    with pytest.raises(type(error)), one_line_errors():
        raise error


def test_control_characters_in_names_are_not_sent_to_the_terminal(capsys):
    with pytest.raises(SystemExit), one_line_errors():
        raise Exhausted("a\0b \x1b[31m c\nd \udcff größe")
    assert capsys.readouterr().err == "error: a\\x00b \\x1b[31m c d \\udcff größe\n"


def little_memory() -> None:
    """100 MB more than the process has: not enough for the weights of a model of 86 million parameters."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + 100 * 2 ** 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def test_a_model_that_is_too_large_for_the_memory(finished, tmp_path):
    end = run(*FOLDER, "--model", "deit_base", "--epochs", 1, "--data-dir", finished / "data", "--out", tmp_path,
              fault=little_memory)
    one_line(end, MACHINE, "choose a smaller --model", code=1)


def small_shared_memory(size: str):
    def fault():
        """A small /dev/shm for this process and its children."""
        assert ctypes.CDLL(None).unshare(0x00020000) == 0                       # CLONE_NEWNS
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)
    return fault


def may_mount() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, capture_output=True).returncode


@pytest.mark.parametrize("size", ["32k", "200k"])
def test_a_small_shared_memory(tmp_path, size):
    """As in a container, whose /dev/shm has 64 MB if nothing is said. Here a batch of 96 images has 295 KB.

    200 KB is too small for a batch, 32 KB even for the semaphores of the loader.
    """
    if not may_mount():
        pytest.skip("only root may mount a small /dev/shm")
    flags, fault = (*SHAPES, "--batch-size", 96, "--epochs", 1), small_shared_memory(size)
    end = run(*flags, "--workers", 2, "--out", tmp_path / "run", fault=fault)
    one_line(end, SHARED, "--shm-size=8g", "--workers 0", code=1)
    again = run(*flags, "--out", tmp_path / "again", fault=fault)
    assert (again.code, again.err) == (0, "")                                   # the advice works
