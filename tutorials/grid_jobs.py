"""What grid.py and dense_grid.py share: runs in processes of their own, and files of results that may be damaged."""
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mpvg_minimal.runtime.errors import UserError, as_user_error, print_error, reason


def in_children(function: Callable, jobs: list[tuple], *, at_once: int = 1) -> Iterator[tuple]:
    """Call function(*job) for each job in a process of its own, and yield the jobs as they end well.

    A process ends when this one does: it saves its run first. The same error of several jobs is printed once.
    UserError at the end if any job failed; the others went on. Call `one_thread` before torch computes anything.
    """
    waiting, running, failed = list(jobs), {}, {}
    while waiting or running:
        while waiting and len(running) < at_once:
            job = waiting.pop(0)
            process, heard = start(function, job)
            running[process.sentinel] = process, job, heard
        for sentinel in multiprocessing.connection.wait(list(running)):
            process, job, heard = running.pop(sentinel)
            try:
                end(process, heard)
            except UserError as error:
                if str(error) not in failed:
                    print_error(str(error))
                failed.setdefault(str(error), []).append(f"{job[0]}, seed {job[-1]}")
            else:
                yield job
    if failed:
        names = "; ".join(name for names in failed.values() for name in names)
        raise UserError(f"these runs did not end well, see above: {names}. The same command goes on")


def one_thread() -> int:
    """Let torch compute in one thread from now on. Returns how many it would have used, for the children.

    A child that is forked from a process whose OpenMP has started threads hangs in its first parallel loop.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return threads


def in_child(function: Callable, *values: Any) -> None:
    """function(*values) in a process of its own. UserError with its message if it failed."""
    end(*start(function, values))


def start(function: Callable, values: tuple) -> tuple[multiprocessing.Process, Any]:
    """The process, and where its error can be read."""
    fork = multiprocessing.get_context("fork")
    heard, said = fork.Pipe(duplex=False)
    process = fork.Process(target=child, args=(function, values, said))
    process.start()
    said.close()
    return process, heard


def end(process: multiprocessing.Process, heard: Any) -> None:
    process.join()
    if process.exitcode:
        try:
            message = heard.recv()
        except EOFError:
            message = f"a run ended with exit code {process.exitcode}"
        raise UserError(message)


def child(function: Callable, values: tuple, said: Any) -> None:
    threading.Thread(target=end_with, args=(multiprocessing.parent_process().sentinel,), daemon=True).start()
    try:
        function(*values)
    except (Exception, KeyboardInterrupt) as error:
        if not (known := as_user_error(error)):
            raise
        said.send(str(known))
        sys.exit(known.exit_code)


def end_with(parent: Any) -> None:
    """Send this process SIGTERM when its parent has ended, however it did: the run is saved, then ends."""
    multiprocessing.connection.wait([parent])
    os.kill(os.getpid(), signal.SIGTERM)


def read_runs(file: Path, needed: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs in a file of results; none if it is not there. needed: keys that every run has, with their types, or a
    function that tests the value.

    UserError if the file is no such list.
    """
    try:
        runs = json.loads(file.read_text()) if file.exists() else []
        if not isinstance(runs, list):
            raise TypeError("it holds no list")
        for run in runs:
            for key, kind in needed.items():
                tested = isinstance(run[key], kind) if isinstance(kind, (type, tuple)) else kind(run[key])
                if not tested:
                    raise TypeError(f"{key} is {run[key]!r:.40}")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({reason(error)}): fetch it again, or move it away") from error
    return runs
