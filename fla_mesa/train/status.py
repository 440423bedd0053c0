"""status.json in a run's folder: how far the run is and how it ended, for programs that wait for it.

{"state": "training", "step": 120, "steps": 1000, "loss": 2.31, "reason": ""}      written whole or not at all

The exit code of `fla-mesa train` says the same of its end (fla_mesa.errors).
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import TrainerCallback, TrainerState

from fla_mesa.json_files import read_json, write_json
from fla_mesa.train.run_folder import STATUS_FILE

STATES = ("training", "done", "diverged", "stopped", "failed")


@dataclass(frozen=True)
class Status:
    """State of a run.

    Attributes:
        state: One of ``STATES``.
        step, steps: Steps done, and in all; of a run that diverged, where.
        loss: Nats a token, as last logged; None before that, or where it is not finite.
        reason: Of a run that diverged, was stopped or failed.
    """

    state: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    reason: str = ""


def write_status(folder: Path, status: Status) -> None:
    """Replaces the status of the run in `folder`. Raises OSError if it cannot be written."""
    write_json(folder / STATUS_FILE, asdict(status))


def read_status(folder: Path) -> Status | None:
    """The status of the run in `folder`; None if there is none of this program."""
    try:
        status = Status(**read_json(folder / STATUS_FILE))
    except (OSError, ValueError, TypeError):
        return None
    return status if status.state in STATES else None


class StatusWriter(TrainerCallback):
    """Keeps a run's status up to date while its model trains.

    Args:
        folder: The run's, which has begun.
        writes: Whether this process is the one that writes.
    """

    def __init__(self, folder: Path, *, writes: bool):
        self._folder = folder
        self._writes = writes
        self._loss: float | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._write("training", state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self._loss = logs["loss"] if math.isfinite(logs["loss"]) else None
            self._write("training", state)

    def end(self, how: str, state: TrainerState, reason: str = "", step: int | None = None) -> None:
        """Writes the last entry. If a full disk has no room for it there is no second error; the exit code says how the run ended."""
        with suppress(OSError):
            self._write(how, state, reason, step)

    def _write(self, how: str, state: TrainerState, reason: str = "", step: int | None = None) -> None:
        if self._writes:
            reached = state.global_step if step is None else step
            write_status(self._folder, Status(how, reached, state.max_steps, self._loss, reason))
