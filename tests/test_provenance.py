"""The commit that a result names is this project's (test_cost.py), or "unknown"."""
import shutil
import subprocess
import time

import pytest
from conftest import ROOT

from mpvg_minimal.runtime import provenance

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


def make_repository(path):
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "other"]):
        subprocess.run(["git", *words], cwd=path, check=True)


def copy_project(path):
    (path / "mpvg_minimal").mkdir(parents=True)
    shutil.copy(ROOT / "mpvg_minimal" / "vit.py", path / "mpvg_minimal")
    return path


@pytest.mark.parametrize("place", ["below", "untracked", "variables"])
def test_another_repositorys_commit_is_not_named(tmp_path, monkeypatch, place):
    """Installed into a folder of another project, copied into it and ignored by it, or led to it by variables."""
    root, other = tmp_path, tmp_path
    (tmp_path / "other.txt").write_text("")
    if place == "below":
        root = copy_project(tmp_path / "site-packages")
    elif place == "variables":
        other = copy_project(tmp_path / "other")
    make_repository(other)
    if place == "untracked":
        copy_project(root)
    elif place == "variables":
        monkeypatch.setenv("GIT_DIR", str(other / ".git"))
        monkeypatch.setenv("GIT_WORK_TREE", str(root))
    monkeypatch.setattr(provenance, "ROOT", root)
    assert provenance.commit() == "unknown"


def test_git_that_hangs_does_not_hold_up_a_run(tmp_path, monkeypatch):
    """Also where a process that git has started holds its output open."""
    (tmp_path / "git").write_text("#!/bin/sh\nsleep 60 & sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(provenance, "PATIENCE", 0.3)
    began = time.monotonic()
    assert provenance.commit() == "unknown" and time.monotonic() - began < 10
