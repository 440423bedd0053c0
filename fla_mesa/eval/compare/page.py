"""report.html: the report as one page that needs no network, with sortable tables and charts by plotly.js."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from fla_mesa.eval.compare.pictures import Panel, Picture
from fla_mesa.eval.compare.plots import look
from fla_mesa.eval.compare.tables import Section, Table

# plotly's names of what matplotlib's are in `look`.
_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
}
_SYMBOLS |= {"<": "triangle-left", ">": "triangle-right", "h": "hexagon", "p": "pentagon"}
_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
_GAP = 0.1  # between panels, as a share of the width


def page(sections: Sequence[Section]) -> str:
    """The whole file; the first section's heading is its title."""
    labels = list(dict.fromkeys(label for each in sections for block in each.blocks for label in _labels(block)))
    body = []
    for section in sections:
        level = "h2" if body else "h1"
        body += [
            f"<{level}>{html.escape(section.head)}</{level}>",
            *(_block(block, labels) for block in section.blocks),
        ]
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(sections[0].head), body="\n".join(body), plotly=_library())


@cache
def _library() -> str:
    """plotly.js, gzipped to less than a third, in base64."""
    source = resources.files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, mtime=0)).decode()


def _labels(block: Table | Picture | str) -> list[str]:
    if isinstance(block, Table):
        return [str(row[0].value) for row in block.rows]
    return [label for panel in block.panels for label in panel.lines] if isinstance(block, Picture) else []


def _block(block: Table | Picture | str, labels: Sequence[str]) -> str:
    if isinstance(block, Table):
        return _table(block, labels)
    if isinstance(block, Picture):
        data = json.dumps(chart(block, labels), separators=(",", ":")).replace("</", "<\\/")
        caption = f"<h3>{html.escape(block.title)}</h3><figcaption>{html.escape(block.caption)}</figcaption>"
        return f'<figure>{caption}<div class="chart"><script type="application/json">{data}</script></div></figure>'
    if block.startswith("- "):
        items = (f"<li>{_text(line[2:])}</li>" for line in block.splitlines())
        return f"<ul>{''.join(items)}</ul>"
    return f"<p>{_text(block)}</p>"


def _text(text: str) -> str:
    """What stands between backticks is code."""
    return re.sub("`(.*?)`", r"<code>\1</code>", html.escape(text, quote=False))


def _table(table: Table, labels: Sequence[str]) -> str:
    head = "".join(f"<th><button>{html.escape(name)}</button></th>" for name in table.head)
    rows = []
    for row in table.rows:
        cells = []
        for i, cell in enumerate(row):
            value = "" if cell.value is None else f' data-value="{html.escape(str(cell.value))}"'
            dot = "" if i else f'<span class="dot" style="background:{look(str(cell.value), labels)["color"]}"></span>'
            cells.append(f"<td{' class=best' if cell.best else ''}{value}>{dot}{html.escape(cell.text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{chr(10).join(rows)}\n</tbody></table></div>'
    )


def chart(picture: Picture, labels: Sequence[str]) -> dict[str, Any]:
    """Data and layout for plotly.js.

    Args:
        picture: What to show.
        labels: Of all models of the page.
    """
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "font": {"family": 'system-ui, "DejaVu Sans", sans-serif', "size": 13, "color": "#222"},
        "margin": {"l": 70, "r": 10, "t": 25, "b": 60},
        "hovermode": "closest" if any(panel.points for panel in picture.panels) else "x unified",
        "legend": {"groupclick": "togglegroup", "tracegroupgap": 0},
        "shapes": [],
    }
    width = (1 + _GAP) / len(picture.panels)
    for i, panel in enumerate(picture.panels):
        number = str(i + 1) if i else ""
        for label in panel.lines:
            first = all(label not in before.lines for before in picture.panels[:i])
            data += _traces(panel, label, labels, number, legend=first)
        layout[f"xaxis{number}"] = _axis(panel.x) | {
            "domain": [i * width, (i + 1) * width - _GAP],
            "anchor": f"y{number}",
            **(_doubling(panel) if panel.log else {}),
        }
        layout[f"yaxis{number}"] = _axis(panel.y) | {"anchor": f"x{number}", "hoverformat": ".4f"}
        if panel.limits is not None:
            layout[f"yaxis{number}"]["range"] = panel.limits
        if panel.mark is not None:
            line = {"dash": "dash", "width": 1, "color": "#666"}
            at = {
                "x0": panel.mark,
                "x1": panel.mark,
                "xref": f"x{number}",
                "y0": 0,
                "y1": 1,
                "yref": f"y{number} domain",
            }
            layout["shapes"].append({"type": "line", "line": line, **at})
    return {"data": data, "layout": layout}


def _axis(title: str) -> dict[str, Any]:
    look = {"gridcolor": "#eee", "zerolinecolor": "#999", "linecolor": "#888", "ticks": "outside", "tickcolor": "#888"}
    return {"title": {"text": title}, "showline": True, **look}


def _doubling(panel: Panel) -> dict[str, Any]:
    ends = [end for line in panel.lines.values() for end in (line.x[0], line.x[-1])]
    ticks = [2**k for k in range(math.floor(math.log2(min(ends))), math.ceil(math.log2(max(ends))) + 1)]
    return {"type": "log", "tickvals": ticks, "hoverformat": ".0f"}


def _traces(panel: Panel, label: str, labels: Sequence[str], number: str, *, legend: bool) -> list[dict[str, Any]]:
    """A model's line and its band, or its point with bars."""
    line, style = panel.lines[label], look(label, labels)
    common = {"legendgroup": label, "xaxis": f"x{number}", "yaxis": f"y{number}"}
    trace: dict[str, Any] = {
        "name": label,
        "x": line.x,
        "y": line.y,
        "mode": "markers" if panel.points else "lines+markers",
        "line": {"color": style["color"], "width": style["linewidth"], "dash": _DASHES[style["linestyle"]]},
        "marker": {"symbol": _SYMBOLS[style["marker"]], "size": 11 if panel.points else 6, "color": style["color"]},
        "showlegend": legend,
        "hovertemplate": "%{y:.4f}",
        **common,
    }
    if panel.points:
        trace["hovertemplate"] = "%{x:,.0f}, %{y:.4f}"
        return [trace | {"error_y": {"type": "data", "array": line.half or [], "color": style["color"]}}]
    if line.half is None:
        return [trace]
    trace |= {"customdata": line.half, "hovertemplate": "%{y:.4f} ± %{customdata:.4f}"}
    low, high = ([y + sign * half for y, half in zip(line.y, line.half, strict=True)] for sign in (-1, 1))
    red, green, blue = (int(style["color"][k : k + 2], 16) for k in (1, 3, 5))
    band = {"x": [*line.x, *line.x[::-1]], "y": [*high, *low[::-1]], "fill": "toself", "mode": "lines"}
    band |= {"fillcolor": f"rgba({red},{green},{blue},0.15)", "line": {"width": 0}, "hoverinfo": "skip"}
    return [band | common | {"showlegend": False, "name": label}, trace]
