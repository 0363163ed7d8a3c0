"""What the tests share: no GPU unless asked for, one thread each, the package without installing it."""
import os
import sys
from pathlib import Path

import pytest

if "-m cuda" not in " ".join(sys.argv):              # otherwise the tests run on the CPU, also where there is a GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""         # before torch is imported, for this process and for its children
import torch  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))                       # `pytest` alone works, without installing the package


@pytest.fixture(autouse=True)
def one_thread_and_a_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
