"""One model, one learning rate, one seed: where its results lie, and the child processes that make them.

output_dir/cells/MODEL/
    lr0.003-seed1/         a folder of `fla-mesa train`, and beside what that leaves:
        outcome.json       how it ended and how long it took; a run that diverged is not tried again, one that failed is
        measured.json      loss by position, speed and memory
    lr0.003-seed1.train.log, lr0.003-seed1.measure.log
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fla_mesa import plugins
from fla_mesa.eval import compare_measure as measuring
from fla_mesa.eval.children import Children
from fla_mesa.eval.compare_settings import Plan
from fla_mesa.json_files import read_json_if_there, write_json
from fla_mesa.train import command as training
from fla_mesa.train.folder import METRICS_FILE, RUN_FILE, STATUS_FILE
from fla_mesa.train.status import read_status

OUTCOME_FILE, MEASURED_FILE = "outcome.json", "measured.json"

Report = Callable[[float, str], None]  # share done, in [0, 1], and what to show


@dataclass(frozen=True)
class Outcome:
    """How the training of a cell ended: `status` is "done", "diverged" (at `step`) or "failed"; `reason` says why."""

    status: str
    seconds: float
    reason: str = ""
    step: int | None = None


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a comparison."""

    plan: Plan
    model: str
    learning_rate: float
    seed: int
    children: Children = field(default_factory=Children, repr=False)

    @property
    def folder(self) -> Path:
        return (
            self.plan.folder / "cells" / self.plan.full_name(self.model) / f"lr{self.learning_rate:g}-seed{self.seed}"
        )

    def __str__(self) -> str:
        return f"{self.model} lr {self.learning_rate:g} seed {self.seed}"

    # What is stored

    def outcome(self) -> Outcome | None:
        """How it ended, or None if it has to be run.

        Raises:
            ValueError: A stored file cannot be read.
        """
        stored = read_json_if_there(self.folder / OUTCOME_FILE)
        if stored is not None and stored.get("status") == "diverged":
            return Outcome(**stored)
        metrics = self.metrics()
        if metrics is None:
            return None
        return Outcome("done", stored["seconds"] if stored is not None else 0.0)

    def metrics(self) -> dict[str, Any] | None:
        """What `fla-mesa train` reports, None before it is finished. Raises ValueError if it cannot be read."""
        metrics = read_json_if_there(self.folder / METRICS_FILE)
        if metrics is not None and not {"loss", "history", "settings", "seq_len"} <= set(metrics):
            raise ValueError(f"{self.folder / METRICS_FILE} is not complete")
        return metrics

    def measured(self, speed: bool) -> dict[str, Any] | None:
        """What `fla-mesa compare measure` found, None if it has to be run. Raises ValueError if it cannot be read."""
        found = read_json_if_there(self.folder / MEASURED_FILE)
        return None if found is None or (speed and "state_bytes" not in found) else found

    def set_aside_unreadable(self) -> list[str]:
        """Renames what cannot be read, so that it is made again; returns what was done, a sentence for each file."""
        said = []
        for name in (OUTCOME_FILE, MEASURED_FILE, METRICS_FILE, RUN_FILE):
            path = self.folder / name
            try:
                (self.metrics if name == METRICS_FILE else lambda path=path: read_json_if_there(path))()
            except ValueError as error:
                if name == RUN_FILE:  # what its checkpoints belong to is not known
                    aside = _unused(self.folder)
                    self.folder.rename(aside)
                    said.append(f"{error}: the folder is now {aside.name}, and the run starts anew")
                else:
                    aside = _unused(path)
                    path.rename(aside)
                    said.append(f"{error}: it is now {aside.name}, and is made again")
        return said

    # Running

    def train(self, report: Report) -> Outcome:
        """Trains, or goes on with a training that was interrupted; stores and returns how it ended.

        Raises:
            DiskFull: So it ended because of that.
            OSError: The outcome cannot be stored.
        """
        flags = [
            *plugins.flags(),
            "--model",
            self.plan.full_name(self.model),
            "--size",
            self.plan.size,
            *self.plan.training,
        ]
        flags += ["--learning_rate", repr(self.learning_rate), "--seed", str(self.seed)]
        flags += ["--output_dir", str(self.folder), "--resume", "--disable_tqdm", "true"]
        if (changes := self.plan.overrides[self.model]) is not None:
            flags += ["--config_overrides", changes]

        (self.folder / STATUS_FILE).unlink(missing_ok=True)  # of an earlier call

        def follow() -> None:
            status = read_status(self.folder)
            if status is not None and status.loss is not None:
                report(status.step / status.steps, f"step {status.step}/{status.steps} loss {status.loss:.4f}")

        code, seconds = self.children.run(training.main, flags, self._log("train"), follow)
        if code == 0 and (self.folder / METRICS_FILE).exists():
            outcome = Outcome("done", seconds)
        elif (status := read_status(self.folder)) is not None and status.state == "diverged":
            reason = f"the loss was no longer a finite number at step {status.step}"
            outcome = Outcome("diverged", seconds, reason, status.step)
        else:
            outcome = Outcome("failed", seconds, _why(code, self._log("train")))
        if self.folder.exists():
            write_json(self.folder / OUTCOME_FILE, vars(outcome))
        return outcome

    def measure(self, speed: bool, report: Report) -> str | None:
        """Measures the trained model; returns what went wrong, or None."""
        report(0.0, "measuring")
        flags = [
            *plugins.flags(),
            "--file",
            str(self.folder / MEASURED_FILE),
            "--position_tokens",
            str(self.plan.position_tokens),
        ]
        flags += ["--speed"] if speed else []
        log = self._log("measure")
        code, _ = self.children.run(measuring.main, [str(self.folder), *flags], log, lambda: None)
        return None if code == 0 else _why(code, log)

    def _log(self, stage: str) -> Path:
        # Not in the cell's folder: a training takes no folder that holds other files.
        return self.folder.with_name(f"{self.folder.name}.{stage}.log")


def _unused(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.unreadable-{number}")).exists():
        number += 1
    return aside


def _why(code: int, log: Path) -> str:
    """Why a child failed, in a sentence."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps because memory ran out" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}; the same command goes on from its last checkpoint"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].removeprefix("fla-mesa train: ") if lines else "no output"
    return f"{last} (exit code {code}; see {log})"
