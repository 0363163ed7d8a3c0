"""A run's folder: whether a run may use it, the settings that are kept in it, and what another run may take from it."""
import argparse
import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import torch

from ..runtime import distributed
from ..runtime.errors import UserError, reason
from ..runtime.files import write_text
from ..runtime.provenance import environment
from . import checkpoint

MODEL = ("model", "pool", "pe", "pe_init")          # the flags that choose a model, and settings of the same names


def choose_out(out: Path | None, settings: dict[str, Any], *, resume: bool) -> Path:
    """The run's folder, which is made if it is missing and is this run's until it ends. None: runs/ and a name.

    UserError if it cannot be written, is in use, or holds a run while `resume` is False or with other settings.
    """
    out = out or Path("runs") / "{dataset}_{model}_{pool}_{pe}_seed{seed}".format(**settings)
    distributed.first_process_first(lambda: distributed.is_first() and claim(out, settings, resume=resume))
    return out


def claim(out: Path, settings: dict[str, Any], *, resume: bool) -> None:
    lock = out / ".lock"                                # says by whom the folder is used, and which torchrun began
    try:
        holds = (out / "config.json").exists() or checkpoint.there(out)
        restarted = distributed.restarts() and lock.exists() and lock.read_bytes() == distributed.launch().encode()
        if holds and not resume and not restarted:
            raise UserError(f"{out} holds a run already: --resume goes on with it, another --out starts a new one")
        if (out / "config.json").exists():              # now, before the data is opened
            refuse_other_settings(read_config(out)["settings"], settings, may_differ=("epochs",))
        out.mkdir(parents=True, exist_ok=True)
        lock.touch()
        take(lock, out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): name another folder") from error
    if resume and not holds:
        print(f"{out} holds no run yet: beginning one", flush=True)


def take(lock: Path, out: Path) -> None:
    """Lock the file until this process ends, and write the name of our `torchrun` there. UserError if another has it.

    Not `flock`: a process that loads images would inherit that lock, and hold it when its run was killed. The file
    is never closed, because closing it would give up the lock. A file system that has no locks is used without.
    """
    file = os.open(lock, os.O_RDWR)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(f"another process is training in {out}: wait for its end, or name another --out") from error
    os.ftruncate(file, 0)
    os.pwrite(file, distributed.launch().encode(), 0)


def refuse_other_settings(saved: dict[str, Any], now: dict[str, Any], *, may_differ: tuple[str, ...] = (),
                          advice: str = "give the same, or start a new run in another --out") -> None:
    """UserError for the first key of `now` whose value differs from the saved one, which is None if it is missing."""
    for key in sorted(now.keys() - set(may_differ)):
        if saved.get(key) != now[key]:
            raise UserError(f"the run was started with {key} = {saved.get(key)!r}, now it is {now[key]!r}: {advice}")


def write_config(run: Path, settings: dict[str, Any], *, data_dir: str | Path, device: torch.device) -> None:
    """Write RUN/config.json, from the first process: the settings, and what else the result depends on."""
    if distributed.is_first():
        config = {"settings": settings, "environment": environment(device), "data_dir": str(data_dir)}
        write_text(run / "config.json", json.dumps(config, indent=2) + "\n")


def read_config(run: Path) -> dict[str, Any]:
    """RUN/config.json: settings, environment, data_dir; from a checkpoint if it is damaged. UserError without both."""
    try:
        config = json.loads((run / "config.json").read_text())
        if isinstance(config["settings"], dict) and isinstance(config["data_dir"], str):
            return {"environment": {}, **config}
        problem = "wrong types"
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem = reason(error)
    if not checkpoint.there(run):
        raise UserError(f"{run} holds no run: config.json is missing or damaged ({problem}) and there is no "
                        "checkpoint; a new run needs another folder")
    return {"settings": checkpoint.newest(run)["settings"], "environment": {}, "data_dir": "data"}


def take_from_init(args: argparse.Namespace) -> str | None:
    """--init: give `args` the checkpoint's model where no flag names one. Returns the checkpoint's path.

    A run that is resumed by --out knows its model, so the checkpoint need not be there any more.
    UserError for a flag that names another model.
    """
    if args.init is None:
        return None
    resumed = args.resume and args.out and (args.out / "config.json").exists()
    saved = (read_config(args.out) if resumed else checkpoint.read(args.init))["settings"]
    with checkpoint.of_this_version():
        model = {key: saved[key] for key in MODEL}
    refuse_another_model(args, saved)
    vars(args).update(model)
    return str(args.init)


def refuse_another_model(args: argparse.Namespace, saved: dict[str, Any], *more: str) -> None:
    """UserError for a flag that names another model than the saved settings. more: other settings to compare."""
    given = {key: getattr(args, key) for key in (*MODEL, *more) if getattr(args, key) is not None}
    refuse_other_settings(saved, given, advice="leave that flag out")
