"""Runs work in child processes, so that a crash costs one piece of it and memory is measured from nothing.

Importing the package takes ten seconds and more. Without an accelerator the children are forked from a server that has done it once; with
one each starts anew, as a GPU's state does not survive a fork.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import torch

from fla_mesa import plugins
from fla_mesa.errors import DISK_FULL, MISTAKE, UserError, is_disk_full

Job = Callable[[], int]  # returns an exit code; must be found by its name in another process


class DiskFull(OSError):
    """The disk is full."""


class Worker:
    """Runs jobs one at a time, each in its own process.

    Args:
        held: A file, such as a lock, that every child keeps open as long as it lives.
        preload: Modules that children find imported.
    """

    def __init__(self, held: int | None = None, preload: Sequence[str] = ("fla_mesa.train.command",)):
        self._held = held
        self._context: Any = multiprocessing.get_context("spawn" if torch.accelerator.is_available() else "forkserver")
        self._context.set_forkserver_preload(list(preload))

    def run(self, job: Job, log: Path, follow: Callable[[], None] = lambda: None) -> tuple[int, float]:
        """Runs one job with its output in the file `log`; returns the exit code (-9 if killed by signal 9) and seconds.

        If this process is told to stop, so is the child, and its end is waited for: it saves a checkpoint.

        Args:
            job: What to do; it is pickled.
            log: Written anew.
            follow: Is called twice a second.

        Raises:
            DiskFull: The child failed because of that.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        begin = time.perf_counter()
        held = None if self._held is None else _Inherited(self._held)
        child = self._context.Process(target=_child, args=(job, plugins.loaded(), log, held))
        child.start()
        try:
            while child.is_alive():
                child.join(0.5)
                follow()
        except BaseException:
            child.terminate()
            child.join()
            raise
        code = child.exitcode
        assert code is not None
        if code == DISK_FULL:
            raise DiskFull(errno.ENOSPC, f"no space left on the disk; see {log}")
        return code, time.perf_counter() - begin


class _Inherited:
    """A file descriptor that a child inherits open."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __reduce__(self):
        return _arrived, (reduction.DupFd(self.descriptor),)  # pyright: ignore[reportAttributeAccessIssue] (not on Windows)


def _arrived(duplicate) -> _Inherited:
    return _Inherited(duplicate.detach())


def _child(job: Job, plugin_names: tuple[str, ...], log: Path, held: _Inherited | None) -> None:
    os.setsid()  # Ctrl-C reaches it through its parent alone, once
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(output, number)
        stream.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue] (TextIO has it)
    try:
        plugins.load(plugin_names)
        code = job()
    except UserError as error:
        print(error, file=sys.stderr)
        code = MISTAKE
    except Exception as error:
        if not is_disk_full(error):
            raise
        traceback.print_exc()
        code = DISK_FULL
    sys.exit(code)
