"""What a result depends on besides its settings: versions, machine, commit."""
import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def environment(device: torch.device) -> dict[str, str]:
    """Versions of Python and the libraries, the device by name, and the commit of this code."""
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": version("torchvision"),
            "device": device_name(device), "commit": commit()}


def device_name(device: torch.device) -> str:
    """For instance "cuda: NVIDIA H100 80GB HBM3" or "cpu: x86_64, 2 cores"."""
    cpu = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{device.type}: {torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu}"


def commit() -> str:
    """The commit of this code, "-dirty" if tracked files outside results/ differ from it; "unknown" without git."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()

    if not shutil.which("git"):
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    return (git("describe", "--always") or "unknown") + ("-dirty" if changed else "")
