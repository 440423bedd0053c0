"""Several comparisons side by side: one for each task of a suite, for each size, or for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fla_mesa.eval import report, report_plots
from fla_mesa.eval.compare_settings import Plan
from fla_mesa.json_files import read_json, write_json
from fla_mesa.models import zoo

PICTURE = "quality_by_width.png"


def write(plans: list[Plan], folder: Path, command: list[str]) -> str:
    """Writes suite.md and suite.json, and the picture of quality against width where there are several; returns the table.

    Args:
        plans: Comparisons that have been reported, of the same models.
        folder: Where to write.
        command: What made them.
    """
    tasks, sizes = (list(dict.fromkeys(of)) for of in ([p.settings.data for p in plans], [p.size for p in plans]))
    heads = [_head(plan, tasks, sizes) for plan in plans]
    reports = [read_json(plan.folder / "report.json") for plan in plans]
    models: dict[str, report.Row] = {}
    label = "quality"
    for head, found in zip(heads, reports, strict=True):
        finished = [row for row in found["models"] if row["seeds"]]
        name, quality = report_plots.quality(finished)
        label = name if finished else label
        for row in found["models"]:
            line = models.setdefault(row["model"], {"model": row["model"], "seeds": 1})
            line[head] = quality.get(row["model"])
    rows = list(models.values())
    better = report.less if "bits" in label else report.more
    columns = [report.spread_column(head, head, better=better) for head in heads]
    varied = " and ".join(name for name, of in (("task", tasks), ("size", sizes)) if len(of) > 1)
    lines = [f"# {label[0].upper()}{label[1:]} by {varied}", "", report.table(rows, columns), ""]
    if len(sizes) > 1:
        picture = {
            (task, zoo.shape(size).hidden_size): {row["model"]: row[head] for row in rows if row.get(head)}
            for head, task, size in ((h, p.settings.data, p.size) for h, p in zip(heads, plans, strict=True))
        }
        caption = f"{label} against the width of the model"
        report_plots.draw_quality_by_width(picture, label, folder / PICTURE)
        lines += [f"![{caption}]({PICTURE})", ""]
    lines += report.circumstances_lines(reports[0] | {"command": command})
    lines += [
        f"- {head}: [report]({plan.folder.relative_to(folder)}/report.md)"
        for head, plan in zip(heads, plans, strict=True)
    ]
    (folder / "suite.md").write_text("\n".join([*lines, ""]))
    content: dict[str, Any] = {"models": rows, "columns": heads, "quality": label, "command": command}
    write_json(folder / "suite.json", content)
    return report.table(rows, columns, bold=False)


def _head(plan: Plan, tasks: list[str], sizes: list[str]) -> str:
    """What tells a comparison from the others."""
    return ", ".join(name for name, of in ((plan.settings.data, tasks), (plan.size, sizes)) if len(of) > 1)
