"""A run's folder: whether a run may use it, and the settings that are kept in it."""
import json
from pathlib import Path
from typing import Any

import torch

from ..runtime import distributed
from ..runtime.errors import UserError
from ..runtime.files import write_text
from ..runtime.provenance import environment


def choose_out(out: Path | None, settings: dict[str, Any], *, resume: bool) -> Path:
    """The run's folder, which is made if it is missing. None: runs/ and a name from the settings.

    UserError if it cannot be written, if it holds a run and `resume` is False or the other way round, or if its run
    has other settings.
    """
    out = out or Path("runs") / "{dataset}_{model}_{pool}_{pe}_seed{seed}".format(**settings)
    try:
        config = (out / "config.json").exists()
        holds = config or any(out.glob("checkpoint*.pt"))
        if holds and not resume and not distributed.was_restarted():
            raise UserError(f"{out} holds a run already: --resume goes on with it, another --out starts a new one")
        if resume and not holds and not distributed.was_restarted():
            raise UserError(f"--resume, but {out} holds no run: start one without it, or name its folder by --out")
        if config:          # now, before the data is opened; the checkpoint's settings are compared once more later
            saved = {key: read_config(out)["settings"].get(key) for key in settings}
            refuse_other_settings(saved, settings, may_differ=("epochs",))
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable.{distributed.rank()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): name another folder") from error
    distributed.barrier()    # no process writes there before all have looked
    return out


def refuse_other_settings(saved: dict[str, Any], now: dict[str, Any], *, may_differ: tuple[str, ...] = (),
                          advice: str = "give the same, or start a new run in another --out") -> None:
    """UserError that names the first key with another value now than in the saved settings."""
    for key in sorted(saved.keys() | now.keys()):
        if key not in may_differ and saved.get(key) != now.get(key):
            raise UserError(f"the run was started with {key} = {saved.get(key)!r}, now it is {now.get(key)!r}: "
                            f"{advice}")


def write_config(run: Path, settings: dict[str, Any], *, data_dir: str, device: torch.device) -> None:
    """Write RUN/config.json, from the first process: the settings, and what else the result depends on."""
    if distributed.is_first():
        config = {"settings": settings, "environment": environment(device), "data_dir": data_dir}
        write_text(run / "config.json", json.dumps(config, indent=2) + "\n")


def read_config(run: Path) -> dict[str, Any]:
    """The content of RUN/config.json. UserError if the folder holds no run."""
    try:
        return json.loads((run / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{run} holds no run: config.json is missing or damaged ({type(error).__name__})") from error
