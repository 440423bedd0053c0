"""One variant, one point of the grid, one seed: where its results lie, what they are, and the work that makes them.

output_dir/cells/VARIANT/
    lr0.003-seed1/         a folder of `fla-mesa train` (of a further weight decay: lr0.003-wd0.01-seed1), and beside what that leaves:
        outcome.json       how it ended and how long it took; a run that diverged is not tried again, one that failed is
        measured.json      what columns.py measures, by name
    lr0.003-seed1.train.log, lr0.003-seed1.measure.log
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

from fla_mesa.errors import UserError
from fla_mesa.eval.compare import columns
from fla_mesa.eval.compare.plan import Plan, Point
from fla_mesa.eval.compare.variants import Variant
from fla_mesa.eval.measure.trained import Metrics, Trained
from fla_mesa.json_files import Unreadable, read_json, read_json_if_there, write_json
from fla_mesa.train.attempt import Outcome, Show, attempt, why
from fla_mesa.train.run_folder import METRICS_FILE, RUN_FILE
from fla_mesa.train.worker import Worker

OUTCOME_FILE, MEASURED_FILE = "outcome.json", "measured.json"


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    plan: Plan
    variant: Variant
    point: Point
    seed: int

    def __str__(self) -> str:
        return f"{self.variant.label} lr {self.point} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.plan.folder / "cells" / self.variant.folder_name / f"{self.point.name}-seed{self.seed}"

    @property
    def sequences_per_step(self) -> int:
        """Of its training, which is one process on one device."""
        return self.plan.training["per_device_train_batch_size"] * self.plan.training["gradient_accumulation_steps"]

    def log(self, stage: str) -> Path:
        """Not in the cell's folder: a training takes no folder that holds other files."""
        return self.folder.with_name(f"{self.folder.name}.{stage}.log")


@dataclass(frozen=True)
class CellResult:
    """What is known of a cell, each of its files read once.

    Attributes:
        run: What was trained, as columns take it; None unless it is done.
        problem: Why it could not be measured.
        found: Whether its training was found finished.
    """

    cell: Cell
    outcome: Outcome
    run: Trained | None = None
    problem: str | None = None
    found: bool = False


# What is stored


def set_aside_unreadable(cell: Cell) -> list[str]:
    """Renames files that cannot be read, so that they are made again; returns a sentence about each."""
    said = []
    for name in (OUTCOME_FILE, MEASURED_FILE, METRICS_FILE, RUN_FILE):
        path = cell.folder / name
        try:
            if name == METRICS_FILE and path.exists():
                Metrics.read(cell.folder)
            else:
                read_json_if_there(path)
        except Unreadable as error:
            # Where run.json cannot be read it is not known what the checkpoints belong to.
            then = "it is made again"
            if name == RUN_FILE:
                path, then = cell.folder, "the run starts again"
            numbers = itertools.count(1)
            aside = next(p for n in numbers if not (p := path.with_name(f"{path.name}.unreadable-{n}")).exists())
            path.rename(aside)
            said.append(f"{error}: renamed to {aside.name}; {then}")
    return said


def stored(cell: Cell) -> CellResult | None:
    """What earlier commands left of a cell, `fla-mesa train` among them; None if it has to be trained.

    Raises:
        Unreadable: A file is not whole.
        UserError: It was trained on batches of another size.
    """
    outcome = read_json_if_there(cell.folder / OUTCOME_FILE)
    if outcome is not None and outcome.get("status") == "diverged":
        return CellResult(cell, Outcome(**outcome), found=True)
    try:
        metrics = Metrics.read(cell.folder)
    except FileNotFoundError:
        return None
    rows, planned = metrics.everything["sequences_per_step"], cell.sequences_per_step
    if rows != planned:
        raise UserError(
            f"output_dir: the run in {cell.folder} took {rows} sequences a step, and this comparison takes {planned}: remove it, or name "
            "another folder"
        )
    measured = read_json_if_there(cell.folder / MEASURED_FILE) or {}
    tokens, extrapolation = (cell.plan.fixed[name] for name in ("position_tokens", "extrapolation"))
    run = Trained(cell.folder, metrics, tokens, extrapolation, measured)
    return CellResult(cell, Outcome("done", 0.0 if outcome is None else outcome["seconds"]), run, found=True)


# Work for other processes


@dataclass(frozen=True)
class Measuring:
    """A job for :class:`Worker`: measures columns of a finished run, and stores them."""

    run: Trained
    names: tuple[str, ...]

    def __call__(self) -> int:
        for name in self.names:
            self.run.measured[name] = columns.COLUMNS[name].function(self.run)
        write_json(self.run.folder / MEASURED_FILE, self.run.measured)
        return 0


def train(cell: Cell, worker: Worker, show: Show) -> CellResult:
    """Trains a cell, or resumes a training that was interrupted; stores and returns how it ended.

    Raises:
        OSError: The disk is full, or the outcome cannot be stored.
    """
    own = {
        **cell.plan.training,
        "model": cell.variant.zoo_name,
        "config_overrides": cell.variant.overrides,
        "seed": cell.seed,
        "learning_rate": cell.point.learning_rate,
        "weight_decay": cell.point.weight_decay,
        "output_dir": str(cell.folder),
        "resume": True,
        "disable_tqdm": True,
    }
    outcome = attempt(own, worker, cell.log("train"), show)
    if cell.folder.exists():
        write_json(cell.folder / OUTCOME_FILE, vars(outcome))
    return replace(stored(cell) or CellResult(cell, outcome), outcome=outcome, found=False)


def measure(result: CellResult, worker: Worker, show: Show, *, first: bool) -> CellResult:
    """Measures the columns that a result lacks; `first` says that it is the first of its variant's seeds."""
    assert result.run is not None
    names = columns.missing(result.run.measured, first=first)
    if not names:
        return result
    show(0.0, "measuring")
    log = result.cell.log("measure")
    code, _ = worker.run(Measuring(result.run, tuple(names)), log)
    if code != 0:
        return replace(result, problem=why(code, log))
    return replace(result, run=replace(result.run, measured=read_json(result.cell.folder / MEASURED_FILE)))
