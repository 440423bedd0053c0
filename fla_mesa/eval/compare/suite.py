"""Several comparisons side by side: one for each task of a suite, for each size, or for both."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fla_mesa.eval.compare import pictures
from fla_mesa.eval.compare.columns import COLUMNS
from fla_mesa.eval.compare.paired import Difference
from fla_mesa.eval.compare.report import circumstances, differences_section
from fla_mesa.eval.compare.results import ModelResult, Report
from fla_mesa.models import zoo
from fla_mesa.report import files
from fla_mesa.report.sections import Section
from fla_mesa.report.tables import MORE, Column, Spread, Table, digits

PICTURE = "quality_by_width"


def write(reports: Sequence[Report], folder: Path) -> str:
    """Writes suite.md, suite.html and suite.json, and the picture of quality against width where there are several; returns the table.

    Args:
        reports: Comparisons of the same models.
        folder: Where to write.
    """
    plans, models = [report.plan for report in reports], reports[0].models
    tasks, sizes = (list(dict.fromkeys(of)) for of in ([p.settings.data for p in plans], [p.size for p in plans]))
    label, quality, found = "quality", [], {}
    for report in reports:
        name, *quality = pictures.judged_by(report.finished)
        label = name if report.finished else label
        of = ((report.plan.settings.data, tasks), (report.plan.size, sizes))
        head = ", ".join(part for part, among in of if len(among) > 1)
        found[head] = {m.label: m.values(*quality) for m in report.finished if m.spread(*quality) is not None}
    each = list(zip(plans, found, strict=True))
    for size in sizes if len(tasks) > 1 else ():
        of_tasks = [found[head] for plan, head in each if plan.size == size]
        found["average" if len(sizes) == 1 else f"average, {size}"] = _averages(of_tasks)
    spreads = {
        head: {model: Spread.of(list(seeds.values())) for model, seeds in of.items()} for head, of in found.items()
    }
    judge = COLUMNS.get(quality[0]) if quality else None
    better, text = (MORE, digits(4)) if judge is None else (judge.better, judge.text)
    columns = [
        Column[ModelResult](head, lambda m, of=of: of.get(m.label), text, better) for head, of in spreads.items()
    ]
    table = Table.of(models, columns)
    shown = []
    if len(sizes) > 1:
        by_width = {(plan.settings.data, zoo.shape(plan.size).hidden_size): spreads[head] for plan, head in each}
        shown.append(pictures.quality_by_width(PICTURE, by_width, label))
    links = "\n".join(f"- {head}: [report]({plan.folder.relative_to(folder)}/report.md)" for plan, head in each)
    varied = " and ".join(name for name, among in (("task", tasks), ("size", sizes)) if len(among) > 1)
    title = f"{label[0].upper()}{label[1:]} by {varied}"
    sections = [Section(title, [table, *shown])]
    if differ := _differences(found, columns, models, plans[0].baseline):
        sections.append(differences_section(f"Differences from {plans[0].baseline}", differ))
    sections.append(Section("How it was measured", [f"{circumstances(reports)}\n{links}"]))
    known = {head: {model: asdict(spread) for model, spread in of.items()} for head, of in spreads.items()}
    rows = []
    for model in models:
        own = differ.get(model.label)
        rows.append(
            {
                "model": model.label,
                **{head: of.get(model.label) for head, of in known.items()},
                "difference": own and {column.heading: one and asdict(one) for column, one in own.items()},
            }
        )
    content = {
        "models": rows,
        "baseline": plans[0].baseline,
        "columns": list(found),
        "quality": label,
        "command": list(reports[0].line),
    }
    files.write(folder, "suite", sections, content)
    return table.markdown(bold=False)


def _differences(
    found: Mapping[str, Mapping[str, Mapping[int, float]]],
    columns: Sequence[Column[ModelResult]],
    models: Sequence[ModelResult],
    baseline: str | None,
) -> dict[str, dict[Column[ModelResult], Difference | None]]:
    """By model and column, over the seeds that both have; empty if the baseline has finished nothing."""
    if baseline is None or not any(baseline in of for of in found.values()):
        return {}

    def difference(head: str, model: str) -> Difference | None:
        return Difference.of(found[head].get(model, {}), found[head].get(baseline, {}))

    others = [model.label for model in models if model.label != baseline]
    return {model: {column: difference(column.heading, model) for column in columns} for model in others}


def _averages(tasks: Sequence[Mapping[str, Mapping[int, float]]]) -> dict[str, dict[int, float]]:
    """Over all tasks, of the models and seeds that have finished them all."""
    averages = {}
    for model in tasks[0]:
        of_tasks = [of.get(model, {}) for of in tasks]
        seeds = [seed for seed in of_tasks[0] if all(seed in of for of in of_tasks)]
        averages[model] = {seed: statistics.fmean(of[seed] for of in of_tasks) for seed in seeds}
    return {model: seeds for model, seeds in averages.items() if seeds}
