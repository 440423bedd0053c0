"""Several comparisons side by side: one for each task of a suite, for each size, or for both."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fla_mesa.eval.compare import pictures, plots
from fla_mesa.eval.compare.columns import COLUMNS, MORE, Spread, digits
from fla_mesa.eval.compare.report import circumstances
from fla_mesa.eval.compare.results import Report
from fla_mesa.eval.compare.tables import Shown, Table
from fla_mesa.json_files import write_json
from fla_mesa.models import zoo

PICTURE = "quality_by_width.png"


def write(reports: Sequence[Report], folder: Path) -> str:
    """Writes suite.md and suite.json, and the picture of quality against width where there are several; returns the table.

    Args:
        reports: Comparisons of the same models.
        folder: Where to write.
    """
    plans = [report.plan for report in reports]
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
    spreads = {head: {model: Spread.of(values) for model, values in of.items()} for head, of in found.items()}
    of_column = COLUMNS.get(quality[0]) if quality else None
    better, text = (MORE, digits(4)) if of_column is None else (of_column.better, of_column.text)
    columns = [Shown(head, _of(values), text, better) for head, values in spreads.items()]
    models = reports[0].models
    table = Table.of(models, columns)
    varied = " and ".join(name for name, among in (("task", tasks), ("size", sizes)) if len(among) > 1)
    lines = [f"# {label[0].upper()}{label[1:]} by {varied}", "", table.markdown(), ""]
    if len(sizes) > 1:
        picture = {(plan.settings.data, zoo.shape(plan.size).hidden_size): spreads[head] for plan, head in each}
        caption = f"{label} against the width of the model"
        plots.draw_panels(pictures.quality_by_width(picture, label), folder / PICTURE)
        lines += [f"![{caption}]({PICTURE})", ""]
    lines += circumstances(reports[0], reports[0].line)
    lines += [f"- {head}: [report]({plan.folder.relative_to(folder)}/report.md)" for plan, head in each]
    (folder / "suite.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    rows = [
        {"model": model.label, **{h: asdict(v[model.label]) if model.label in v else None for h, v in spreads.items()}}
        for model in models
    ]
    content = {"models": rows, "columns": list(found), "quality": label, "command": list(reports[0].line)}
    write_json(folder / "suite.json", content)
    return table.markdown(bold=False)


def _averages(tasks: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Over all tasks, of each seed of the models that have finished them all."""
    models = [model for model in tasks[0] if all(model in of for of in tasks)]
    return {
        model: [statistics.fmean(seed) for seed in zip(*(of[model] for of in tasks), strict=True)] for model in models
    }


def _of(values: dict[str, Spread]):
    return lambda model: values.get(model.label)
