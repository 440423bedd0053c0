"""The report of a comparison: report.md, report.html and report.json."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from fla_mesa.eval.compare import pictures
from fla_mesa.eval.compare.columns import COLUMNS, Column, Figures
from fla_mesa.eval.compare.paired import Difference
from fla_mesa.eval.compare.plan import Point
from fla_mesa.eval.compare.results import ModelResult, Report, failure
from fla_mesa.models import zoo
from fla_mesa.report import files, tables
from fla_mesa.report.pictures import Picture
from fla_mesa.report.sections import Section, listed
from fla_mesa.report.tables import Cell, Spread, Table, digits

_PARAMETRIZATIONS = {
    "released": "Released parametrization: each model as flash-linear-attention or transformers ships it, at equal depth, width, MLP and "
    "tokenizer, with parameters matched.",
    "matched": "Matched parametrization (arXiv 2506.05233, appendix E.1): one layer for all models, with the same projections, "
    "convolutions, scalar gates, norms and key size; only the recurrence rule differs.",
}
# By kind of column: the heading of its table, and what is said below.
_TABLES = {
    "quality": (
        "Quality",
        "Losses are {losses}. Positions from {seq_len} on are beyond the training length.",
    ),
    "solver": (
        "Solver",
        "For models with Mesa layers: the change of the validation loss without solving (0 steps) and with an exact solution, the mean "
        "number of steps per solve, and the share of solves that ended above the tolerance (raise max_cg_step_training to lower it).",
    ),
    "speed": (
        "Speed and memory",
        "These figures vary from run to run. Training speed excludes evaluations and checkpoints; prefill reads prompts of the training "
        "length; memory is the peak of a step with AdamW; the state is what it takes to continue one sequence after that many tokens.",
    ),
}
_SEVERAL_DEVICES = (
    "The runs are from several devices (listed below), so these speeds say nothing about how fast the models are beside each other, and "
    "no picture shows them."
)
_INTERVAL = (
    "Means over pairs of runs with the same seed, which saw the same data in the same order, with 95 % intervals where there are "
    "several pairs (Student's t of the paired differences). Each model is at its own best point of the grid, chosen on the same "
    "validation data."
)


@dataclass(frozen=True)
class Shown(tables.Column[ModelResult]):
    """A column of a table; `name` and `key` are those of the comparison's column that it shows, if it is of one."""

    name: str = ""
    key: str = ""

    @classmethod
    def of(cls, column: Column, key: str) -> Shown:
        """The table column that shows a comparison's column under one of its keys ("" if it has a single value)."""
        value: Callable[[ModelResult], Spread | None] = lambda model: model.spread(column.name, key)  # noqa: E731
        return cls(column.heading.format(key), value, column.text, column.better, column.name, key)

    def difference(self, model: ModelResult, base: ModelResult) -> Difference | None:
        """Between two models, over the pairs of runs in which both have a value; None if there is none."""
        return Difference.of(model.values(self.name, self.key), base.values(self.name, self.key))


def shown_columns(report: Report, kind: str) -> list[Shown]:
    """The columns of a table, "quality", "solver" or "speed": those that some model has a value for."""
    shown = []
    for name, column in COLUMNS.items():
        found = [figure for model in report.models if isinstance(figure := model.figures[name], Mapping)]
        covered = any(model.figures[other] is not None for model in report.models for other in column.unless)
        if column.table != kind or covered or not found:
            continue
        keys = column.shown(list(dict.fromkeys(key for figure in found for key in figure)), report.run["seq_len"])
        shown += [Shown.of(column, key) for key in keys]
        if name == "parameters":
            shown.append(_of_point("lr", lambda point: point.learning_rate))
            if len(report.plan.weight_decays) > 1:
                shown.append(_of_point("weight decay", lambda point: point.weight_decay))
    return shown


def _of_point(heading: str, value: Callable[[Point], float]) -> Shown:
    return Shown(heading, lambda model: None if model.point is None else value(model.point), tables.shortest)


def _table(report: Report, kind: str) -> Table | None:
    """All models, or of the solver those that have one; None if there is nothing to show."""
    columns = shown_columns(report, kind)
    solves = [model for model in report.models if any(column.value(model) is not None for column in columns)]
    return Table.of(solves if kind == "solver" else report.models, columns) if columns else None


def differences(report: Report) -> dict[str, dict[tables.Column[ModelResult], Difference | None]]:
    """How each model differs from the baseline; empty if there is nothing to hold them against."""
    base = report.baseline
    shown = [column for column in shown_columns(report, "quality") if column.better is not None]
    others = [model for model in report.finished if base is not None and model is not base]
    return {model.label: {column: column.difference(model, base) for column in shown} for model in others if base}


def differences_section(
    head: str, found: Mapping[str, Mapping[tables.Column[ModelResult], Difference | None]]
) -> Section:
    """How models differ from a baseline in some columns, with intervals.

    Args:
        head: The heading.
        found: By model and column.
    """

    def cell(column: tables.Column[ModelResult], one: Difference | None) -> Cell:
        return Cell.of(one and Spread(one.mean, one.half), column.text, signed=True)

    rows = [[Cell(label, label), *(cell(*each) for each in of.items())] for label, of in found.items()]
    table = Table(["model", *(column.heading for column in next(iter(found.values())))], rows)
    return Section(head, [table, _INTERVAL])


def _figure(column: Column, found: Figures) -> object:
    """A figure as report.json holds it: spreads as mean and std where they are over seeds, else bare numbers."""
    if not isinstance(found, Mapping):
        return found
    plain = {key: asdict(value) if column.over_seeds == "spread" else value.mean for key, value in found.items()}
    return plain.get("", plain)


def as_json(report: Report) -> dict[str, object]:
    """Everything that report.json holds."""
    rows, differ = [], differences(report)
    for model in report.models:
        own = differ.get(model.label)
        found = [run.metrics for run in model.trained]
        rows.append(
            {
                "model": model.label,
                "zoo_name": model.variant.zoo_name,
                "config_overrides": model.variant.overrides,
                "learning_rate": None if model.point is None else model.point.learning_rate,
                "weight_decay": None if model.point is None else model.point.weight_decay,
                "seeds": len(model.runs),
                "parameters_without_embeddings": found[0].parameters_without_embeddings if found else None,
                **{name: _figure(column, model.figures[name]) for name, column in COLUMNS.items()},
                "difference": own and {column.heading: one and asdict(one) for column, one in own.items()},
                "validation_curves": [metrics.history["validation"] for metrics in found],
                "training_curves": [metrics.history["train"] for metrics in found],
                "mean_loss_by_learning_rate": {str(point): loss for point, loss in model.mean_loss.items()},
                "failures": [failure(result) for result in model.failures],
            }
        )
    plan = report.plan
    of_plan = ("baseline", "parametrization", "size", "seeds", "grid_seeds", "learning_rates", "weight_decays")
    return {
        **{name: getattr(plan, name) for name in of_plan},
        "models": rows,
        "notes": notes(report),
        "run": dict(report.run),
        "command": list(report.line),
    }


def notes(report: Report) -> dict[str, str]:
    """What is to be known of a model beside the rest: its rule if they are matched, else where more than the rule differs."""
    names = {model.label: model.variant.zoo_name for model in report.models}
    return {label: zoo.NOTES[name] for label, name in names.items() if name in zoo.NOTES}


def terminal(report: Report) -> str:
    """The tables for a terminal."""
    parts = [f"{report.plan.size}, {report.plan.parametrization} parametrization"]
    for kind in _TABLES:
        if table := _table(report, kind):
            parts.append("\n".join([table.markdown(bold=False), *(report.yardsticks if kind == "quality" else [])]))
    return "\n\n" + "\n\n".join(parts + (["\n".join(report.failures)] if report.failures else []))


def sections(report: Report, shown: Sequence[Picture]) -> list[Section]:
    """What the report says; the first section's heading is its title."""
    plan, models = report.plan, report.models
    several = f"{len(models)} model" + ("s" if len(models) > 1 else "")
    done = [_what_was_done(report)] if "steps" in report.run else []
    found = [Section(f"{several} at size {plan.size}", [_PARAMETRIZATIONS[plan.parametrization], *done])]
    for kind, (head, said) in _TABLES.items():
        if table := _table(report, kind):
            above = report.yardsticks if kind == "quality" else []
            mixed = [_SEVERAL_DEVICES] if kind == "speed" and len(report.run["devices"]) > 1 else []
            found.append(Section(head, [table, *above, said.format(losses=report.losses, **report.run), *mixed]))
        if kind == "quality":
            if differ := differences(report):
                found.append(differences_section(f"Differences from {plan.baseline}", differ))
            if shown:
                found.append(Section("Pictures", shown))
    if len(plan.grid) > 1:
        columns = [Shown(str(point), lambda model, at=point: model.mean_loss.get(at), digits(4)) for point in plan.grid]
        found.append(Section("Validation loss by learning rate", [Table.of(models, columns)]))
    if report.failures:
        found.append(Section("Runs that did not finish", ["\n".join(report.failures)]))
    if differ_by := notes(report):
        head = (
            "The rules"
            if plan.parametrization == "matched"
            else "Where models differ from MesaNet in more than the rule"
        )
        found.append(Section(head, [listed(differ_by)]))
    return [*found, Section("How it was measured", [circumstances([report])])]


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _what_was_done(report: Report) -> str:
    run, plan, seeds = report.run, report.plan, report.plan.seeds
    tokens = run["steps"] * run["sequences_per_step"] * run["seq_len"]
    said = (
        f"Each model was trained on the same {tokens:,} tokens of `{run['data']['source']}` in the same order ({run['steps']:,} steps of "
        f"{run['sequences_per_step']} sequences of {run['seq_len']} tokens), with {_named(seeds)}."
    )
    if len(plan.grid) > 1:
        rates, decays = (", ".join(map(tables.shortest, of)) for of in (plan.learning_rates, plan.weight_decays))
        grid = f"Learning rates {rates}" + f" with each of the weight decays {decays}" * (len(plan.weight_decays) > 1)
        some = plan.grid_seeds != seeds
        on, then = (f" on {_named(plan.grid_seeds)}", ", at which the other seeds ran") if some else ("", "")
        said += f" {grid}{on}; each model keeps the one with the least validation loss{then}."
    return said + (" Figures are means ± standard deviations over the seeds." if len(seeds) > 1 else "")


def circumstances(reports: Sequence[Report]) -> str:
    """Command, machine, versions, data and commits of the comparisons that one command made, a line each."""
    runs = [report.run for report in reports if "versions" in report.run] or [reports[0].run]
    run, changed = runs[0], runs[0].get("settings", {}).get("config_overrides")
    facts = {"command": f"`{shlex.join(reports[0].line)}`"}
    if "devices" in run:
        devices = sorted({device for one in runs for device in one["devices"]})
        facts["device"] = f"{'; '.join(devices)}; {run['processes']} process(es)"
    facts["machine"] = run["machine"]
    if changed:
        facts["changed in the configurations"] = f"`{changed}`"
    if "versions" in run:
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        data = (f"{one['data']['source']}, sha256 {one['data']['sha256'][:16]}" for one in runs)
        facts["data"] = "; ".join(dict.fromkeys(data))
    if run["commit"]:
        trained_at = sorted({commit for one in runs for commit in one.get("trained_at", [run["commit"]])})
        elsewhere = f"; trained at {', '.join(trained_at)}" if trained_at != [run["commit"]] else ""
        facts["commit"] = f"{run['commit']}{elsewhere}"
    return listed(facts)


def write(report: Report) -> None:
    """Writes pictures, report.md, report.html and report.json into the comparison's folder."""
    plan = report.plan
    shown = pictures.pictures(report.finished, report.run.get("seq_len", 0), plan.baseline)
    pictures.remove_others(shown, plan.folder)
    files.write(plan.folder, "report", sections(report, shown), as_json(report))
