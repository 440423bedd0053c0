"""`fla-mesa compare`: trains models on the same tokens in the same order, evaluates them alike, and reports."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from fla_mesa import plugins
from fla_mesa.commands import command
from fla_mesa.data import load_data
from fla_mesa.errors import UserError
from fla_mesa.eval import report, report_suite
from fla_mesa.eval.children import Children
from fla_mesa.eval.compare_cells import Cell, Outcome
from fla_mesa.eval.compare_settings import Plan, parse_all
from fla_mesa.json_files import read_json, write_json
from fla_mesa.train.interrupt import Interrupted, signals_to
from fla_mesa.train.progress import clock
from fla_mesa.train.recipe import data_request

PLAN_FILE, LOCK_FILE = "compare.json", "lock"
_BAR = 20  # columns


@command("compare")
def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code: 0, 1 (no model could be trained, or the disk is full), 2 (wrong settings), 130 or 143
    (stopped)."""
    line = ["fla-mesa", "compare", *plugins.flags(), *argv]
    plans = parse_all(argv)
    for plan in plans:  # what is wrong with the data is said once, and now
        load_data(data_request(plan.settings, say=lambda _: None))
    for plan in plans:
        open_folder(plan)
    locks = [take(plan) for plan in plans]
    with contextlib.ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        codes = []
        for plan, lock in zip(plans, locks, strict=True):
            codes.append(compare(plan, Children(lock.fileno()), line))
            if codes[-1] > 1:
                return codes[-1]
        if len(plans) > 1:
            folder = Path(os.path.commonpath([plan.folder for plan in plans]))
            try:
                print(report_suite.write(plans, folder, line))
            except (OSError, ValueError) as error:  # a full disk, here or when one of the reports was written
                print(f"fla-mesa compare: the table of all cannot be written: {error}", file=sys.stderr)
                return 1
        return min(codes)


def compare(plan: Plan, children: Children, line: list[str]) -> int:
    """Runs the plan and reports; returns the exit code."""
    comparison = Comparison(plan, children)
    try:
        with signals_to(_stop):
            comparison.run()
    except Interrupted as stop:
        comparison.display.line(f"stopped by {stop.name}: the same command goes on from here")
        return stop.exit_code
    except OSError as error:
        comparison.display.line(
            f"fla-mesa compare: {error}\nwhat was finished is kept in {plan.folder}: make room, and the same command goes on"
        )
        return 1
    results = comparison.results(line)
    try:
        report.write(results, plan.folder)
    except OSError as error:
        print(f"fla-mesa compare: the report cannot be written: {error}", file=sys.stderr)
        return 1
    print(report.terminal(results))
    print(f"\nreport.md, report.json and pictures are in {plan.folder}")
    return 0 if any(row["seeds"] for row in results["models"]) else 1


def _stop(number: int) -> None:
    raise Interrupted(number)


def open_folder(plan: Plan) -> None:
    """Makes the folder this comparison's, or finds that it is.

    Raises:
        ValueError: It holds something else, or a comparison with other settings.
    """
    path = plan.folder / PLAN_FILE
    if path.exists():
        try:
            stored = read_json(path)
        except ValueError as error:
            raise UserError(f"output_dir: {error}") from None
        now = plan.fixed | {"size": plan.size}
        changed = [name for name in now if stored.get(name) != now[name]]
        if changed:
            changes = "; ".join(f"{name} was {stored.get(name)!r} and is now {now[name]!r}" for name in changed)
            raise UserError(f"output_dir: the comparison in {plan.folder} had other settings: {changes}")
        return
    if plan.folder.exists() and (not plan.folder.is_dir() or any(plan.folder.iterdir())):
        raise UserError(f"output_dir: {plan.folder} holds files that are no comparison of this program: name another")
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_json(path, plan.fixed | {"size": plan.size})


def take(plan: Plan) -> TextIO:
    """A lock on the comparison's folder: held until it is closed here and in every child that keeps it open.

    Raises:
        ValueError: Another process, perhaps a child that outlived its comparison, is at work there.
    """
    import fcntl

    lock = (plan.folder / LOCK_FILE).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(f"output_dir: another process is at work in {plan.folder}: wait for it, or end it") from None
    return lock


class Display:
    """Lines that stay, and on a terminal one that moves."""

    def __init__(self) -> None:
        self._moving = sys.stderr.isatty()

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        print(f"\r\x1b[K{text}" if self._moving else text, file=sys.stderr, flush=True)

    def move(self, share: float, text: str) -> None:
        """Shows a bar and a text in place of the last ones; `share` of all is done."""
        if self._moving:
            full = round(share * _BAR)
            line = f"{'█' * full}{'░' * (_BAR - full)} {text}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


class Progress:
    """How much of all work is done and how long the rest takes, by what finished work of its kind has taken."""

    def __init__(self, trainings: int, measurements: int):
        self.todo = {"train": trainings, "measure": measurements}
        self.total = trainings + measurements
        self.times: dict[str, list[float]] = {"train": [], "measure": []}
        self._begin = time.perf_counter()

    def start(self) -> None:
        """A piece of work begins."""
        self._begin = time.perf_counter()

    def finish(self, kind: str, *, ran: bool) -> None:
        """It is done; one that was found finished does not count as fast."""
        self.todo[kind] -= 1
        if ran:
            self.times[kind].append(time.perf_counter() - self._begin)

    def left(self, kind: str | None = None, share: float = 0.0) -> str:
        """The time left: "about 3:20 left", or nothing while that is unknown.

        Args:
            kind: What is being worked on, if anything is.
            share: How much of that is done; 0 if it does not tell.
        """
        spent = time.perf_counter() - self._begin
        means = {name: sum(times) / len(times) for name, times in self.times.items() if times}
        if kind is not None and kind not in means and share > 0.02:
            means[kind] = spent / share
        if "train" not in means:
            return ""
        means.setdefault("measure", 0.3 * means["train"])  # a guess until one is done
        seconds = sum(means[name] * count for name, count in self.todo.items())
        if kind is not None:
            seconds -= share * means[kind] if share > 0 else min(spent, means[kind])
        return f"about {clock(seconds)} left"


class Comparison:
    """The cells of a plan, run one after the other, each unless it is stored."""

    def __init__(self, plan: Plan, children: Children):
        self.plan = plan
        self.display = Display()
        self.cells = [
            Cell(plan, model, rate, seed, children)
            for model in plan.models
            for rate in plan.learning_rates
            for seed in plan.seeds
        ]
        self.outcomes: dict[Cell, Outcome] = {}
        self.problems: dict[Cell, str] = {}
        self.progress = Progress(len(self.cells), len(plan.models) * len(plan.seeds))

    def run(self) -> None:
        """Trains and measures what is not stored yet. Raises OSError where results cannot be stored."""
        for model in self.plan.models:
            for cell in self._of(model):
                self._train(cell)
            best = self.best(model)
            for number, cell in enumerate(best):
                self._measure(cell, speed=number == 0)
            for _ in range(len(self.plan.seeds) - len(best)):
                self.progress.finish("measure", ran=False)

    def _of(self, model: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.model == model]

    def best(self, model: str) -> list[Cell]:
        """The cells of the learning rate with the least mean validation loss, among those with which no seed diverged or failed."""
        whole = []
        for rate in self.plan.learning_rates:
            cells = [cell for cell in self._of(model) if cell.learning_rate == rate]
            if all(self.outcomes[cell].status == "done" for cell in cells):
                whole.append((sum(_loss(cell) for cell in cells), cells))
        return min(whole, key=lambda pair: pair[0])[1] if whole else []

    def _line(self, text: str) -> None:
        done = self.progress.total - sum(self.progress.todo.values())
        self.display.line(f"[{done}/{self.progress.total}] {text}")

    def _reporter(self, kind: str, cell: Cell):
        def show(share: float, what: str) -> None:
            done = self.progress.total - sum(self.progress.todo.values())
            left = self.progress.left(kind, share)
            text = f"{done}/{self.progress.total}, {left + ', ' if left else ''}{cell}: {what}"
            self.display.move((done + share) / self.progress.total, text)

        return show

    def _stored(self, cell: Cell) -> Outcome | None:
        try:
            return cell.outcome()
        except ValueError:
            return None

    def _train(self, cell: Cell) -> None:
        for sentence in cell.set_aside_unreadable():
            self.display.line(f"{cell}: {sentence}")
        self.progress.start()
        stored = self._stored(cell)
        outcome = stored or cell.train(self._reporter("train", cell))
        self.outcomes[cell] = outcome
        self.progress.finish("train", ran=stored is None)
        how = (
            report.figure(cell.metrics()) if outcome.status == "done" else f"{outcome.status.upper()}: {outcome.reason}"
        )
        left = self.progress.left() if any(self.progress.todo.values()) else ""
        when = "stored" if stored else clock(outcome.seconds)
        self._line(f"{cell}: {how} ({when})" + (f", {left}" if left else ""))

    def _measure(self, cell: Cell, speed: bool) -> None:
        if cell.measured(speed) is None:
            self.progress.start()
            problem = cell.measure(speed, self._reporter("measure", cell))
            self.progress.finish("measure", ran=True)
            if problem is not None:
                self.problems[cell] = problem
                self._line(f"{cell}: MEASUREMENT FAILED: {problem}")
        else:
            self.progress.finish("measure", ran=False)

    def results(self, line: list[str]) -> dict[str, Any]:
        """Everything that report.json holds."""
        rows = []
        for model in self.plan.models:
            best = self.best(model)
            runs = [(cell.metrics() or {}, cell.measured(speed=False) or {}) for cell in best]
            failures = [
                {"cell": str(cell), "status": outcome.status, "step": outcome.step, "reason": outcome.reason}
                for cell in self._of(model)
                if (outcome := self.outcomes[cell]).status != "done"
            ]
            failures += [
                {"cell": str(cell), "status": "not measured", "step": None, "reason": self.problems[cell]}
                for cell in best
                if cell in self.problems
            ]
            rates = {f"{rate:g}": self._mean_loss(model, rate) for rate in self.plan.learning_rates}
            row = report.row(model, self.plan.full_name(model), best[0].learning_rate if best else None, runs)
            rows.append(row | {"mean_loss_by_learning_rate": rates, "failures": failures})
        return report.results(self.plan, rows, line)

    def _mean_loss(self, model: str, rate: float) -> float | None:
        cells = [cell for cell in self._of(model) if cell.learning_rate == rate]
        if any(self.outcomes[cell].status != "done" for cell in cells):
            return None
        return mean(_loss(cell) for cell in cells)


def _loss(cell: Cell) -> float:
    metrics = cell.metrics()
    assert metrics is not None
    return metrics["loss"]


def mean(values: Iterable[float]) -> float:
    """Their sum over their number."""
    values = list(values)
    return sum(values) / len(values)
