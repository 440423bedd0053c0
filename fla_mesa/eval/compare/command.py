"""`fla-mesa compare`: trains models on the same tokens in the same order, evaluates them alike, and reports."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from fla_mesa import plugins
from fla_mesa.commands import command
from fla_mesa.data import load_data
from fla_mesa.eval.compare import report, suite
from fla_mesa.eval.compare.display import Display
from fla_mesa.eval.compare.folder import lock, open_folder
from fla_mesa.eval.compare.plan import Plan, parse
from fla_mesa.eval.compare.results import Report, summarize
from fla_mesa.eval.compare.run import run
from fla_mesa.train.interrupt import Interrupted, signals_to
from fla_mesa.train.recipe import data_request
from fla_mesa.train.settings import build
from fla_mesa.train.worker import Worker


@command("compare")
def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code.

    0, 1 (no model could be trained, or the disk is full), 2 (wrong settings), 130 or 143 (stopped).
    """
    return compare(parse(argv), ["fla-mesa", "compare", *plugins.flags(), *argv])[0]


def compare(plans: list[Plan], line: list[str]) -> tuple[int, list[Report]]:
    """Runs plans and reports on each, and on all of them if there are several.

    Args:
        plans: See :func:`fla_mesa.eval.compare.plan.parse`.
        line: The command, to be reported.

    Returns:
        The exit code, and the reports that were written.
    """
    if note := build(plans[0].training)[1].about_idle_gpus:
        print(note, file=sys.stderr)
    for plan in plans:  # what is wrong with the data is said once, and now
        load_data(data_request(plan.settings, say=lambda _: None))
    for plan in plans:
        open_folder(plan)
    with contextlib.ExitStack() as stack:
        locks = [stack.enter_context(lock(plan)) for plan in plans]
        codes, reports = [], []
        for plan, held in zip(plans, locks, strict=True):
            code, made = _one(
                plan, Worker(held.fileno(), ["fla_mesa.train.command", "fla_mesa.eval.compare.cell"]), line
            )
            if code > 1:
                return code, reports
            codes.append(code)
            reports += [made] if made is not None else []
        if len(plans) > 1:
            try:
                print(suite.write(reports, Path(os.path.commonpath([plan.folder for plan in plans]))))
            except (OSError, ValueError) as error:  # a full disk, here or when one of the reports was written
                print(f"fla-mesa compare: the table of all comparisons cannot be written: {error}", file=sys.stderr)
                return 1, reports
        return min(codes), reports


def _one(plan: Plan, worker: Worker, line: list[str]) -> tuple[int, Report | None]:
    """Runs a plan and reports; returns the exit code, and the report if it was written."""
    display = Display()
    try:
        with display, signals_to(_stop):
            results = run(plan, worker, display)
    except Interrupted as stop:
        display.line(f"stopped by {stop.name}: run the same command to continue")
        return stop.exit_code, None
    except OSError as error:
        kept = f"finished runs are kept in {plan.folder}: free some disk space and run the same command to continue"
        display.line(f"fla-mesa compare: {error}\n{kept}")
        return 1, None
    made = Report.of(plan, summarize(plan, results), line)
    try:
        report.write(made)
    except OSError as error:
        print(f"fla-mesa compare: the report cannot be written: {error}", file=sys.stderr)
        return 1, None
    print(report.terminal(made))
    print(f"\nreport.html, report.md, report.json and pictures are in {plan.folder}")
    return (0 if made.finished else 1), made


def _stop(number: int) -> None:
    raise Interrupted(number)
