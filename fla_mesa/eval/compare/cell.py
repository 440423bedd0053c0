"""One variant, one point of the grid, one seed: where its results lie, what they are, and the work that makes them.

output_dir/cells/VARIANT/
    lr0.003-seed1/         a folder of `fla-mesa train` (of a further weight decay: lr0.003-wd0.01-seed1), and beside what that leaves:
        outcome.json       how it ended and how long it took; a run that diverged is not tried again, one that failed is
        measured.json      what columns.py measures, by name
    lr0.003-seed1.train.log, lr0.003-seed1.measure.log
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fla_mesa import plugins
from fla_mesa.eval.compare import columns
from fla_mesa.eval.compare.plan import Plan, Point, Values
from fla_mesa.eval.compare.variants import Variant
from fla_mesa.eval.measure.trained import Metrics, Trained, Value
from fla_mesa.json_files import Unreadable, read_json, read_json_if_there, write_json
from fla_mesa.train import command, settings
from fla_mesa.train.run_folder import METRICS_FILE, RUN_FILE, STATUS_FILE
from fla_mesa.train.status import read_status
from fla_mesa.train.worker import Job, Worker

OUTCOME_FILE, MEASURED_FILE = "outcome.json", "measured.json"
FILES = (OUTCOME_FILE, MEASURED_FILE, METRICS_FILE, RUN_FILE)

Show = Callable[[float, str], None]  # share done, in [0, 1], and what is being done


@dataclass(frozen=True)
class Outcome:
    """How the training of a cell ended: `status` is "done", "diverged" (at `step`) or "failed"; `reason` says why."""

    status: str
    seconds: float
    reason: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    variant: Variant
    point: Point
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.variant.label} lr {self.point} seed {self.seed}"

    def log(self, stage: str) -> Path:
        """Not in the cell's folder: a training takes no folder that holds other files."""
        return self.folder.with_name(f"{self.folder.name}.{stage}.log")


@dataclass(frozen=True)
class CellResult:
    """What is known of a cell, each of its files read once.

    Attributes:
        metrics: Of a run that is done.
        measured: By the name of the column.
        problem: Why it could not be measured.
        found: Whether its training was found finished.
    """

    cell: Cell
    outcome: Outcome
    metrics: Metrics | None = None
    measured: dict[str, Value] = field(default_factory=dict)
    problem: str | None = None
    found: bool = False

    def trained(self, plan: Plan) -> Trained:
        """The same, to be measured and reported."""
        assert self.metrics is not None
        return Trained(self.cell.folder, self.metrics, plan.position_tokens, plan.extrapolation, self.measured)


def cells_of(plan: Plan, variant: Variant, points: Sequence[Point], seeds: Sequence[int]) -> list[Cell]:
    """In the order in which they run."""
    folder = plan.folder / "cells" / variant.folder_name
    return [Cell(variant, point, seed, folder / f"{point.name}-seed{seed}") for point in points for seed in seeds]


# What is stored


def set_aside_unreadable(cell: Cell) -> list[str]:
    """Renames what cannot be read, so that it is made again; returns what was done, a sentence for each file."""
    said = []
    for name in FILES:
        path = cell.folder / name
        try:
            if name == METRICS_FILE and path.exists():
                Metrics.read(cell.folder)
            else:
                read_json_if_there(path)
        except Unreadable as error:
            # Where run.json cannot be read it is not known what the checkpoints belong to.
            path, done = (cell.folder, "the folder is") if name == RUN_FILE else (path, "it is")
            aside = _unused(path)
            path.rename(aside)
            said.append(
                f"{error}: {done} now {aside.name}, and {'the run starts anew' if name == RUN_FILE else 'is made again'}"
            )
    return said


def _unused(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.unreadable-{number}")).exists():
        number += 1
    return aside


def stored(cell: Cell) -> CellResult | None:
    """What earlier calls left of it, or None if it has to be trained. Raises Unreadable."""
    outcome = read_json_if_there(cell.folder / OUTCOME_FILE)
    if outcome is not None and outcome.get("status") == "diverged":
        return CellResult(cell, Outcome(**outcome), found=True)
    try:
        metrics = Metrics.read(cell.folder)
    except FileNotFoundError:
        return None
    seconds = 0.0 if outcome is None else outcome["seconds"]
    measured = read_json_if_there(cell.folder / MEASURED_FILE) or {}
    return CellResult(cell, Outcome("done", seconds), metrics, measured, found=True)


# Work for other processes


@dataclass(frozen=True)
class Training:
    """Trains a cell: settings of `fla-mesa train` by name."""

    values: Values

    def __call__(self) -> int:
        line = ["fla-mesa", "train", *plugins.flags(), *settings.words(self.values)]
        return command.train(*settings.build(self.values), line=line)


@dataclass(frozen=True)
class Measuring:
    """Measures some columns of a cell that is trained."""

    run: Trained
    names: tuple[str, ...]

    def __call__(self) -> int:
        for name in self.names:
            self.run.measured[name] = columns.COLUMNS[name].function(self.run)
        write_json(self.run.folder / MEASURED_FILE, self.run.measured)
        return 0


def train(plan: Plan, cell: Cell, worker: Worker, show: Show) -> CellResult:
    """Trains it, or goes on with a training that was interrupted; stores and returns how it ended.

    Raises:
        OSError: The disk is full, or the outcome cannot be stored.
    """
    own = {
        **plan.training,
        "model": cell.variant.zoo_name,
        "config_overrides": cell.variant.overrides,
        "seed": cell.seed,
        "learning_rate": cell.point.learning_rate,
        "weight_decay": cell.point.weight_decay,
        "output_dir": str(cell.folder),
        "resume": True,
        "disable_tqdm": True,
    }
    (cell.folder / STATUS_FILE).unlink(missing_ok=True)  # of an earlier call

    def follow() -> None:
        status = read_status(cell.folder)
        if status is not None and status.loss is not None:
            show(status.step / status.steps, f"step {status.step}/{status.steps} loss {status.loss:.4f}")

    code, seconds = worker.run(Training(own), cell.log("train"), follow)
    if code == 0 and (cell.folder / METRICS_FILE).exists():
        outcome = Outcome("done", seconds)
    elif (status := read_status(cell.folder)) is not None and status.state == "diverged":
        reason = f"the loss was no longer a finite number at step {status.step}"
        outcome = Outcome("diverged", seconds, reason, status.step)
    else:
        outcome = Outcome("failed", seconds, _why(code, cell.log("train")))
    if cell.folder.exists():
        write_json(cell.folder / OUTCOME_FILE, vars(outcome))
    return replace(stored(cell) or CellResult(cell, outcome), outcome=outcome, found=False)


def measure(plan: Plan, result: CellResult, worker: Worker, show: Show, *, first: bool) -> CellResult:
    """Measures what it lacks; `first` if it is the first of its variant's seeds."""
    names = columns.missing(result.measured, first=first)
    if not names:
        return result
    show(0.0, "measuring")
    cell = result.cell
    job: Job = Measuring(result.trained(plan), tuple(names))
    code, _ = worker.run(job, cell.log("measure"))
    if code != 0:
        return replace(result, problem=_why(code, cell.log("measure")))
    return replace(result, measured=read_json(cell.folder / MEASURED_FILE))


def _why(code: int, log: Path) -> str:
    """Why a child failed, in a sentence."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps because memory ran out" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}; the same command goes on from its last checkpoint"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'no output'} (exit code {code}; see {log})"
