"""Several comparisons side by side: one for each task of a suite, for each size, or for both."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fla_mesa.eval.compare import plots
from fla_mesa.eval.compare.columns import LESS, MORE, Spread, digits
from fla_mesa.eval.compare.report import circumstances
from fla_mesa.eval.compare.results import Report
from fla_mesa.eval.compare.tables import Shown, model_table
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
    label, found = "quality", {}
    for report in reports:
        name, quality = plots.judged_by(report.finished)
        label = name if report.finished else label
        of = ((report.plan.settings.data, tasks), (report.plan.size, sizes))
        head = ", ".join(part for part, among in of if len(among) > 1)
        found[head] = {model.label: value for model in report.finished if (value := quality(model)) is not None}
    better = LESS if "bits" in label else MORE
    columns = [Shown(head, _of(values), digits(4), better) for head, values in found.items()]
    models = reports[0].models
    if len(found) > 1 and len(sizes) == 1:
        columns.append(Shown("average", lambda model: _average(model.label, list(found.values())), digits(4), better))
    varied = " and ".join(name for name, among in (("task", tasks), ("size", sizes)) if len(among) > 1)
    lines = [f"# {label[0].upper()}{label[1:]} by {varied}", "", model_table(models, columns), ""]
    if len(sizes) > 1:
        points = zip(plans, found.values(), strict=True)
        picture = {(plan.settings.data, zoo.shape(plan.size).hidden_size): values for plan, values in points}
        caption = f"{label} against the width of the model"
        plots.draw_quality_by_width(picture, label, folder / PICTURE)
        lines += [f"![{caption}]({PICTURE})", ""]
    lines += circumstances(reports[0], reports[0].line)
    links = zip(found, plans, strict=True)
    lines += [f"- {head}: [report]({plan.folder.relative_to(folder)}/report.md)" for head, plan in links]
    (folder / "suite.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    rows = [
        {"model": model.label, **{h: asdict(v[model.label]) if model.label in v else None for h, v in found.items()}}
        for model in models
    ]
    content = {"models": rows, "columns": list(found), "quality": label, "command": list(reports[0].line)}
    write_json(folder / "suite.json", content)
    return model_table(models, columns, bold=False)


def _average(label: str, found: Sequence[dict[str, Spread]]) -> Spread | None:
    """Over all tasks, of a model that has finished them."""
    means = [values[label].mean for values in found if label in values]
    return Spread(statistics.fmean(means)) if len(means) == len(found) else None


def _of(values: dict[str, Spread]):
    return lambda model: values.get(model.label)
