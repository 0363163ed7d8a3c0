"""What the tests share: no GPU unless asked for, one thread each, the package without installing it."""
import os
import sys
from pathlib import Path

import pytest

on_cpu = "-m cuda" not in " ".join(sys.argv)
if on_cpu:                                          # also where there is a GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""         # before torch is imported, for this process and for its children
import torch  # noqa: E402

if on_cpu:
    # Autograd starts its threads now. After the first fake tensor it would start one for CUDA, and no fork could train.
    torch.ones((), requires_grad=True).backward()

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))                       # `pytest` alone works, without installing the package
sys.path.append(str(ROOT / "tutorials"))            # for what the tutorials' own commands import

torch.set_num_threads(1)                            # fixtures of a module or session come before the one below
# A fork makes torch's thread pool anew at the first call that asks for it. Two threads that ask at once abort it.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(torch.get_num_threads()))


@pytest.fixture(autouse=True)
def one_thread_and_a_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """Two finished runs of one epoch, on shapes and on a folder of images, and the images. A test changes copies only.

    shapes, folder, data
    """
    import runs
    base = tmp_path_factory.mktemp("finished")
    runs.image_folder(base / "data")
    assert runs.run(*runs.SHAPES, "--epochs", 1, "--out", base / "shapes").code == 0
    assert runs.run(*runs.FOLDER, "--epochs", 1, "--data-dir", base / "data", "--out", base / "folder").code == 0
    return base
