"""A training in a process of its own: how far it is, and how it ended."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fla_mesa import plugins
from fla_mesa.train import command, settings
from fla_mesa.train.run_folder import METRICS_FILE, STATUS_FILE
from fla_mesa.train.status import read_status
from fla_mesa.train.worker import Worker

Show = Callable[[float, str], None]  # share done, in [0, 1], and what is being done


@dataclass(frozen=True)
class Outcome:
    """How a training ended: `status` is "done", "diverged" (at `step`) or "failed"; `reason` says why."""

    status: str
    seconds: float
    reason: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Training:
    """A job for :class:`Worker`: settings of `fla-mesa train` by name. Its output begins with the command that does the same."""

    values: Mapping[str, Any]

    def __call__(self) -> int:
        line = ["fla-mesa", "train", *plugins.flags(), *settings.words(self.values)]
        print(shlex.join(line), flush=True)
        return command.train(*settings.build(self.values), line=line)


def attempt(values: Mapping[str, Any], worker: Worker, log: Path, show: Show) -> Outcome:
    """Trains as the settings say, their `output_dir` among them, with its output in the file `log`.

    Raises:
        OSError: The disk is full.
    """
    folder = Path(values["output_dir"])
    (folder / STATUS_FILE).unlink(missing_ok=True)  # of an earlier call

    def follow() -> None:
        status = read_status(folder)
        if status is not None and status.loss is not None:
            show(status.step / status.steps, f"step {status.step}/{status.steps} loss {status.loss:.4f}")

    code, seconds = worker.run(Training(values), log, follow)
    if code == 0 and (folder / METRICS_FILE).exists():
        return Outcome("done", seconds)
    status = read_status(folder)
    if status is not None and status.state == "diverged":
        reason = f"the loss was no longer a finite number at step {status.step}"
        return Outcome("diverged", seconds, reason, status.step)
    return Outcome("failed", seconds, why(code, log))


def why(code: int, log: Path) -> str:
    """Why a job failed, in a sentence: by its exit code and the last line of its output."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps because memory ran out" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}; the same command continues from its last checkpoint"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'no output'} (exit code {code}; see {log})"
