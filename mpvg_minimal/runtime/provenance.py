"""What a result depends on besides its settings: versions, machine, commit."""
import os
import platform
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 5.0          # seconds that git may take for an answer


def environment(device: torch.device) -> dict[str, str]:
    """Versions of Python and the libraries, the device by name, and the commit of this code."""
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": version("torchvision"),
            "device": device_name(device), "commit": commit()}


def device_name(device: torch.device) -> str:
    """For instance "cuda: NVIDIA H100 80GB HBM3" or "cpu: x86_64, 2 cores"."""
    cpu = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{device.type}: {torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu}"


def commit() -> str:
    """The commit of this code, "-dirty" if tracked files outside results/ differ from it. "unknown" where git is not
    there or hangs, and where this folder is no repository of its own.
    """
    try:
        if Path(git("rev-parse", "--show-toplevel")) != ROOT or not git("ls-files", "--", "mpvg_minimal/vit.py"):
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
        return git("describe", "--always") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def git(*words: str) -> str:
    """What git prints. It gets a file and no pipe, because a process that it leaves behind would hold a pipe open."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}     # GIT_DIR and others
    with tempfile.TemporaryFile() as out:
        subprocess.run(["git", *words], cwd=ROOT, env=ours, stdin=subprocess.DEVNULL, stdout=out,
                       stderr=subprocess.DEVNULL, timeout=PATIENCE, check=True)
        out.seek(0)
        return out.read().decode(errors="replace").strip()
