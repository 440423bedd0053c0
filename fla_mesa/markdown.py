"""Markdown tables, aligned so that they are readable in a terminal too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

EMPTY = "–"  # what stands where there is no value


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table without a trailing newline.

    Args:
        head: Heading of each column.
        rows: Their cells, as many in each row as there are columns. A ``|`` in one is escaped.
        left: How many columns are aligned left; the others, numbers, are aligned right.
    """
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def aligned(cells: Sequence[str]) -> str:
        return line(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )

    rule = line("-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths))
    return "\n".join([aligned(lines[0]), rule, *map(aligned, lines[1:])])
