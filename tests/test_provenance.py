"""The commit that a result names is this project's, or "unknown"."""
import shutil
import subprocess
import time

import pytest
from conftest import ROOT

from mpvg_minimal.runtime import provenance


def make_repository(path):
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "other"]):
        subprocess.run(["git", *words], cwd=path, check=True)
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=path, capture_output=True, text=True,
                          check=True).stdout.strip()


def copy_project(path):
    (path / "mpvg_minimal").mkdir(parents=True)
    shutil.copy(ROOT / "mpvg_minimal" / "vit.py", path / "mpvg_minimal")


@pytest.fixture(autouse=True)
def git_is_there():
    if not shutil.which("git"):
        pytest.skip("git is not installed")


def test_the_projects_own_commit_and_changes(tmp_path, monkeypatch):
    copy_project(tmp_path)
    commit = make_repository(tmp_path)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() == commit
    (tmp_path / "mpvg_minimal" / "vit.py").write_text("other")
    assert provenance.commit() == f"{commit}-dirty"


@pytest.mark.parametrize("place", ["below", "untracked"])
def test_another_repositorys_commit_is_not_named(tmp_path, monkeypatch, place):
    """Installed into a folder of another project, or copied into it and ignored by it."""
    (tmp_path / "other.txt").write_text("")
    root = tmp_path / "site-packages" if place == "below" else tmp_path
    if place == "below":
        copy_project(root)
    make_repository(tmp_path)
    if place == "untracked":
        copy_project(root)
    monkeypatch.setattr(provenance, "ROOT", root)
    assert provenance.commit() == "unknown"


def test_variables_that_lead_to_another_repository_are_not_followed(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    copy_project(tmp_path / "other")
    make_repository(tmp_path / "other")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert provenance.commit() == "unknown"


def test_git_that_hangs_does_not_hold_up_a_run(tmp_path, monkeypatch):
    """Also where a process that git has started holds its output open."""
    (tmp_path / "git").write_text("#!/bin/sh\nsleep 60 & sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(provenance, "PATIENCE", 0.3)
    began = time.monotonic()
    assert provenance.commit() == "unknown" and time.monotonic() - began < 10
