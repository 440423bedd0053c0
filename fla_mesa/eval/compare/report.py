"""The report of a comparison: report.md, report.html and report.json."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fla_mesa.eval.compare import plots
from fla_mesa.eval.compare.columns import COLUMNS, Column, Spread
from fla_mesa.eval.compare.page import page
from fla_mesa.eval.compare.pictures import Picture, pictures
from fla_mesa.eval.compare.plan import Point
from fla_mesa.eval.compare.results import ModelResult, Report, failure
from fla_mesa.eval.compare.tables import Of, Section, Shown, Table, difference, differences, shown_columns, table_rows
from fla_mesa.json_files import write_json
from fla_mesa.models import zoo

_PARAMETRIZATIONS = {
    "released": "Released parametrization: each model as flash-linear-attention or transformers ships it, at equal depth, width, MLP and "
    "tokenizer, with parameters matched.",
    "matched": "Matched parametrization (arXiv 2506.05233, appendix E.1): one layer for all, with the same projections, convolutions, "
    "scalar gates, norms and key size, in which only the recurrence rule differs.",
}
# By kind of column: the heading of its table, and what is said below.
_TABLES = {
    "quality": (
        "Quality",
        "Losses are {losses}. Positions from {seq_len} on are beyond the training length.",
    ),
    "solver": (
        "Solver",
        "Of models with Mesa layers: how much the validation loss changes where nothing is solved (0 steps) and where everything is solved "
        "exactly, steps a solve, and the share of solves that ended above the tolerance (what helps: a higher max_cg_step_training).",
    ),
    "speed": (
        "Speed and memory",
        "Measured, so that it varies from run to run. Training speed leaves evaluations and checkpoints out; prefill is of the training "
        "length; memory is that of a step with AdamW; the state is what one sequence needs to be continued after so many tokens.",
    ),
}
_INTERVAL = (
    "Means over pairs of runs of one seed, which saw the same data in the same order, with 95 % intervals where there are several "
    "(Student's t of the paired differences). Each model is at its own best point of the grid, chosen on the same validation data."
)


def _figure(column: Column, found: Mapping[str, Spread] | list[float] | None) -> object:
    """A figure as report.json holds it: spreads as mean and std where they are over seeds, else bare numbers."""
    if not isinstance(found, Mapping):
        return found
    plain = {key: asdict(value) if column.over_seeds == "spread" else value.mean for key, value in found.items()}
    return plain.get("", plain)


def as_json(report: Report) -> dict[str, object]:
    """Everything that report.json holds."""
    rows = []
    for model in report.models:
        curves = [metrics.history for metrics in model.metrics]
        rows.append(
            {
                "model": model.label,
                "zoo_name": model.variant.zoo_name,
                "config_overrides": model.variant.overrides,
                "learning_rate": None if model.point is None else model.point.learning_rate,
                "weight_decay": None if model.point is None else model.point.weight_decay,
                "seeds": len(model.runs),
                "parameters_without_embeddings": next((m.parameters_without_embeddings for m in model.metrics), None),
                **{name: _figure(column, model.figures[name]) for name, column in COLUMNS.items()},
                "difference": _difference_as_json(report, model),
                "validation_curves": [curve["validation"] for curve in curves],
                "training_curves": [curve["train"] for curve in curves],
                "mean_loss_by_learning_rate": {str(point): loss for point, loss in model.mean_loss.items()},
                "failures": [failure(result) for result in model.failures],
            }
        )
    plan = report.plan
    return {
        "baseline": plan.baseline,
        "parametrization": plan.parametrization,
        "size": plan.size,
        "seeds": list(plan.seeds),
        "grid_seeds": list(plan.grid_seeds),
        "learning_rates": list(plan.learning_rates),
        "weight_decays": list(plan.weight_decays),
        "models": rows,
        "notes": notes(report),
        "run": dict(report.run),
        "command": list(report.line),
    }


def notes(report: Report) -> dict[str, str]:
    """In what a model differs from MesaNet's frame, by its label."""
    names = {model.label: model.variant.zoo_name for model in report.models}
    return {label: zoo.NOTES[name] for label, name in names.items() if name in zoo.NOTES}


def _difference_as_json(report: Report, model: ModelResult) -> dict[str, object] | None:
    """From the baseline, in each column of the quality table by its heading."""
    base = report.baseline
    if base is None or model is base:
        return None
    shown = [column for column in shown_columns(report, "quality") if column.better is not None]
    found = {column.heading: difference(model, base, column) for column in shown}
    return {heading: None if one is None else asdict(one) for heading, one in found.items()}


def terminal(report: Report) -> str:
    """The tables for a terminal."""
    parts = [f"{report.plan.size}, {report.plan.parametrization} parametrization"]
    for kind in _TABLES:
        if columns := shown_columns(report, kind):
            after = report.yardsticks if kind == "quality" else []
            parts.append("\n".join([Table.of(table_rows(report, kind), columns).markdown(bold=False), *after]))
    return "\n\n" + "\n\n".join(parts + (["\n".join(report.failures)] if report.failures else []))


def sections(report: Report, pictures: Sequence[Picture]) -> list[Section]:
    """What the report says; the first section's heading is its title."""
    plan, models = report.plan, report.models
    several = f"{len(models)} model" + ("s" if len(models) > 1 else "")
    done = [_what_was_done(report)] if "steps" in report.run else []
    found = [Section(f"{several} at size {plan.size}", [_PARAMETRIZATIONS[plan.parametrization], *done])]
    for kind, (head, said) in _TABLES.items():
        if columns := shown_columns(report, kind):
            after = (
                [*report.yardsticks, said.format(losses=report.losses, **report.run)] if kind == "quality" else [said]
            )
            found.append(Section(head, [Table.of(table_rows(report, kind), columns), *after]))
        if kind == "quality" and (differs := differences(report)) is not None:
            found.append(Section(f"Differences from {plan.baseline}", [differs, _INTERVAL]))
        if kind == "quality" and pictures:
            found.append(Section("Pictures", list(pictures)))
    if len(plan.grid) > 1:
        columns = [Shown(str(point), _loss_at(point), lambda value: f"{value:.4f}") for point in plan.grid]
        found.append(Section("Validation loss by learning rate", [Table.of(models, columns)]))
    if report.failures:
        found.append(Section("What did not finish", ["\n".join(report.failures)]))
    if said_of := notes(report):
        said = "\n".join(f"- {label}: {note}" for label, note in said_of.items())
        found.append(Section("In what the models differ from MesaNet's frame", [said]))
    return [*found, Section("How it was measured", ["\n".join(circumstances(report, report.line))])]


def markdown(found: Sequence[Section]) -> str:
    """report.md."""
    lines = []
    for i, section in enumerate(found):
        lines += [f"{'##' if i else '#'} {section.head}", ""]
        for block in section.blocks:
            if isinstance(block, Picture):
                lines += [f"![{block.caption}]({block.name}.png)", "", block.caption, ""]
            else:
                lines += [block if isinstance(block, str) else block.markdown(), ""]
    return "\n".join(lines)


def _loss_at(point: Point) -> Of:
    def value(model: ModelResult) -> Spread | None:
        loss = model.mean_loss.get(point)
        return None if loss is None else Spread(loss)

    return value


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _what_was_done(report: Report) -> str:
    run, plan, seeds = report.run, report.plan, report.plan.seeds
    tokens = run["steps"] * run["sequences_per_step"] * run["seq_len"]
    said = (
        f"Each was trained on the same {tokens:,} tokens of `{run['data']['source']}` in the same order ({run['steps']:,} steps of "
        f"{run['sequences_per_step']} sequences of {run['seq_len']} tokens), with {_named(seeds)}."
    )
    if len(plan.grid) > 1:
        grid = f"Learning rates {_listed(plan.learning_rates)}"
        if len(plan.weight_decays) > 1:
            grid += f" with each of the weight decays {_listed(plan.weight_decays)}"
        some = plan.grid_seeds != seeds
        on, then = (f" on {_named(plan.grid_seeds)}", ", at which the other seeds ran") if some else ("", "")
        said += f" {grid}{on}; each model keeps the one with the least validation loss{then}."
    return said + (" Figures are means ± standard deviations over the seeds." if len(seeds) > 1 else "")


def circumstances(report: Report, line: Sequence[str]) -> list[str]:
    """Command, machine, versions, data and commit, a line each."""
    run = report.run
    lines = [f"- command: `{shlex.join(line)}`"]
    if "device" in run:
        lines.append(f"- device: {run['device']}, {run['processes']} process(es)")
    lines.append(f"- machine: {run['machine']}")
    if run.get("settings", {}).get("config_overrides"):
        lines.append(f"- changed in the configurations: `{run['settings']['config_overrides']}`")
    if "versions" in run:
        lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in run["versions"].items()))
        lines.append(f"- data: {run['data']['source']}, sha256 {run['data']['sha256'][:16]}")
    if run["commit"]:
        trained_at = run.get("trained_at", [run["commit"]])
        elsewhere = f"; trained at {', '.join(trained_at)}" if trained_at != [run["commit"]] else ""
        lines.append(f"- commit: {run['commit']}{elsewhere}")
    return lines


def write(report: Report) -> None:
    """Writes pictures, report.md, report.html and report.json into the comparison's folder."""
    folder = report.plan.folder
    shown = pictures(report.finished, report.run.get("seq_len", 0), report.plan.baseline)
    plots.draw(shown, folder)
    found = sections(report, shown)
    for name, text in (("report.md", markdown(found)), ("report.html", page(found))):
        unfinished = folder / f"{name}.tmp"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / name)
    write_json(folder / "report.json", as_json(report))
