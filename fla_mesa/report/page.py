"""A report as one HTML page that needs no network, with sortable tables and charts by plotly.js."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fla_mesa.report.pictures import Line, Look, Panel, Picture
from fla_mesa.report.sections import Block, Section
from fla_mesa.report.tables import Table

# plotly's names of what matplotlib's are in a Look.
_SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"}
_SYMBOLS |= {"X": "x", "*": "star", "<": "triangle-left", ">": "triangle-right", "h": "hexagon", "p": "pentagon"}
_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_AXIS = {"gridcolor": "#eee", "zerolinecolor": "#999", "linecolor": "#888", "ticks": "outside", "tickcolor": "#888"}


def page(sections: Sequence[Section]) -> str:
    """The whole file; the first section's heading is its title, and a table's rows have the colours of the pictures."""
    pictures = [block for section in sections for block in section.blocks if isinstance(block, Picture)]
    looks = {label: look for picture in pictures for label, look in picture.looks.items()}
    body = []
    for section in sections:
        level = "h2" if body else "h1"
        body.append(f"<{level}>{html.escape(section.head)}</{level}>")
        body += [_block(block, looks) for block in section.blocks]
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(sections[0].head), body="\n".join(body), plotly=_library())


@cache
def _library() -> str:
    """plotly.js, gzipped to less than a third, in base64."""
    source = resources.files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, mtime=0)).decode()


def _block(block: Block, looks: Mapping[str, Look]) -> str:
    if isinstance(block, Table):
        return _table(block, looks)
    if isinstance(block, Picture):
        data = json.dumps(chart(block), separators=(",", ":")).replace("</", "<\\/")
        caption = f"<h3>{html.escape(block.title)}</h3><figcaption>{html.escape(block.caption)}</figcaption>"
        return f'<figure>{caption}<div class="chart"><script type="application/json">{data}</script></div></figure>'
    if block.startswith("- "):
        items = (f"<li>{_text(line[2:])}</li>" for line in block.splitlines())
        return f"<ul>{''.join(items)}</ul>"
    return f"<p>{_text(block)}</p>"


def _text(text: str) -> str:
    """What stands between backticks is code, and a link to another report's Markdown leads to its page."""
    parts = html.escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else _LINK.sub(_link, part) for i, part in enumerate(parts))


def _link(found: re.Match[str]) -> str:
    words, target = found.groups()
    return f'<a href="{html.escape(target.removesuffix(".md"))}{".html" * target.endswith(".md")}">{words}</a>'


def _table(table: Table, looks: Mapping[str, Look]) -> str:
    head = "".join(f"<th><button>{html.escape(name)}</button></th>" for name in table.head)
    rows = []
    for row in table.rows:
        cells = []
        for cell in row:
            value = "" if cell.value is None else f' data-value="{html.escape(str(cell.value))}"'
            dot = f'<span class="dot" style="background:{looks[cell.text].color}"></span>' if cell.text in looks else ""
            cells.append(f"<td{' class=best' if cell.best else ''}{value}>{dot}{html.escape(cell.text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{"".join(rows)}</tbody></table></div>'


def chart(picture: Picture) -> dict:
    """Data and layout for plotly.js."""
    figure = make_subplots(1, len(picture.panels), horizontal_spacing=0.1)
    seen: set[str] = set()
    for i, panel in enumerate(picture.panels, start=1):
        at: dict[str, Any] = {"row": 1, "col": i}
        for label, line in panel.lines.items():
            for trace in _traces(panel, label, line, picture.looks[label]):
                figure.add_trace(trace, **at)
            figure.data[-1].showlegend = label not in seen
            seen.add(label)
        figure.update_xaxes(title_text=panel.x, showline=True, **_AXIS, **(_doubling(panel) if panel.log else {}), **at)
        figure.update_yaxes(title_text=panel.y, showline=True, **_AXIS, range=panel.limits, hoverformat=".4f", **at)
        figure.update_yaxes(type="log" if panel.log_y else None, **at)
        if panel.mark is not None:
            figure.add_vline(panel.mark, line={"dash": "dash", "width": 1, "color": "#666"}, **at)
    figure.update_layout(
        template="none",
        font={"family": 'system-ui, "DejaVu Sans", sans-serif', "size": 13, "color": "#222"},
        margin={"l": 70, "r": 10, "t": 25, "b": 60},
        hovermode="closest" if any(panel.points for panel in picture.panels) else "x unified",
        legend={"groupclick": "togglegroup", "tracegroupgap": 0},
    )
    return figure.to_plotly_json()


def _doubling(panel: Panel) -> dict:
    ends = [end for line in panel.lines.values() for end in (line.x[0], line.x[-1])]
    ticks = [2**k for k in range(math.floor(math.log2(min(ends))), math.ceil(math.log2(max(ends))) + 1)]
    return {"type": "log", "tickvals": ticks, "hoverformat": ".0f"}


def _traces(panel: Panel, label: str, line: Line, look: Look) -> Iterator[go.Scatter]:
    """The band of a line, then the line; or points with bars."""
    common = {"name": label, "legendgroup": label}
    text = "%{y:.4f}"
    if panel.points:
        text = "%{x:,.0f}, %{y:.4f}"
    elif line.half is not None:
        text = "%{y:.4f} ± %{customdata:.4f}"
        low, high = line.band
        red, green, blue = (int(look.color[k : k + 2], 16) for k in (1, 3, 5))
        around = {"x": [*line.x, *line.x[::-1]], "y": [*high, *low[::-1]], "fill": "toself", "mode": "lines"}
        around |= {"fillcolor": f"rgba({red},{green},{blue},0.15)", "line": {"width": 0}, "hoverinfo": "skip"}
        yield go.Scatter(**around, **common, showlegend=False)
    yield go.Scatter(
        x=line.x,
        y=[None if math.isnan(value) else value for value in line.y],  # a gap
        mode="markers" if panel.points else "lines+markers" if look.marker else "lines",
        line={"color": look.color, "width": look.linewidth, "dash": _DASHES[look.linestyle]},
        marker={"symbol": _SYMBOLS.get(look.marker), "size": 11 if panel.points else 6, "color": look.color},
        hovertemplate=text,
        customdata=None if panel.points else line.half,
        error_y={"type": "data", "array": line.half or [], "color": look.color} if panel.points else None,
        **common,
    )
