"""The files of a report: NAME.json holds all of it, and NAME.md, NAME.html and the PNG pictures are made from that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fla_mesa.errors import UserError
from fla_mesa.json_files import read_json, write_json, write_text
from fla_mesa.report.page import page
from fla_mesa.report.pictures import Line, Look, Panel, Picture
from fla_mesa.report.sections import Block, Section, as_markdown
from fla_mesa.report.tables import Cell, Table

_KEY = "sections"


def write(folder: Path, name: str, sections: Sequence[Section], content: Mapping[str, object]) -> list[Path]:
    """Writes the JSON file, and from it the others; returns their paths.

    Args:
        folder: Where to write.
        name: Of the files, without their suffix.
        sections: What the report says; the first one's heading is its title.
        content: What the JSON file holds besides.

    Raises:
        OSError: A file cannot be written.
        ValueError: `content` or the sections hold what JSON cannot; NaN, for example.
    """
    path = folder / f"{name}.json"
    write_json(path, {**content, _KEY: _plain(sections)})
    found = read(path)
    page_path, text_path = path.with_suffix(".html"), path.with_suffix(".md")
    write_text(page_path, page(found))
    write_text(text_path, as_markdown(found))
    pictures = [block for section in found for block in section.blocks if isinstance(block, Picture)]
    return [page_path, text_path, path, *(picture.draw(folder) for picture in pictures)]


def read(path: Path) -> list[Section]:
    """The sections in a JSON file that :func:`write` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It cannot be read, or holds no report.
    """
    stored = read_json(path)
    if _KEY not in stored:
        raise UserError(
            f"{path} holds no {_KEY!r}: it is no report of this program, or an older one, which the command that wrote it writes again"
        )
    try:
        return [Section(one["head"], [_block(block) for block in one["blocks"]]) for one in stored[_KEY]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no report to show ({type(error).__name__}: {error})") from None


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, a block of a section with its kind beside it; None for NaN, which JSON has no word for."""
    if is_dataclass(value):
        kind = {"kind": type(value).__name__} if isinstance(value, Table | Picture) else {}
        return kind | {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _block(stored: Any) -> Block:
    if isinstance(stored, str):
        return stored
    of = dict(stored)
    return {"Table": _table, "Picture": _picture}[of.pop("kind")](**of)


def _table(rows: Sequence[Any], **of: Any) -> Table:
    return Table(rows=[[Cell(**cell) for cell in row] for row in rows], **of)


def _picture(panels: Sequence[Any], looks: Mapping[str, Any], **of: Any) -> Picture:
    known = {label: Look(**look) for label, look in looks.items()}
    return Picture(panels=[_panel(**panel) for panel in panels], looks=known, **of)


def _panel(lines: Mapping[str, Any], **of: Any) -> Panel:
    return Panel(lines={label: _line(**line) for label, line in lines.items()}, **of)


def _line(y: Sequence[float | None], **of: Any) -> Line:
    return Line(y=[math.nan if value is None else value for value in y], **of)
