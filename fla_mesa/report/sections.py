"""A report as sections, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fla_mesa.report.pictures import Picture
from fla_mesa.report.tables import Table

Block = Table | Picture | str


@dataclass(frozen=True)
class Section:
    """A heading, then tables, pictures, paragraphs and lists, whose lines begin with "- "."""

    head: str
    blocks: Sequence[Block]


def listed(facts: Mapping[str, object]) -> str:
    """A list of what is known, by name; what is None is left out."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)


def as_markdown(sections: Sequence[Section]) -> str:
    """The first section's heading is the title."""
    lines = []
    for i, section in enumerate(sections):
        lines += [f"{'##' if i else '#'} {section.head}", ""]
        for block in section.blocks:
            if isinstance(block, Picture):
                lines += [f"![{block.caption}]({block.name}.png)", "", block.caption, ""]
            else:
                lines += [block if isinstance(block, str) else block.markdown(), ""]
    return "\n".join(lines)
