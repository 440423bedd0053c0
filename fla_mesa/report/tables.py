"""Tables of records by columns. A column says once what it is called, a record's value, how that is written and which of two is better."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar

from fla_mesa import markdown

Record = TypeVar("Record")
Text = Callable[[float], str]

LESS, MORE = "less", "more"  # which of two values is better


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (over n - 1; None for a single value)."""

    mean: float
    std: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


# How values are written


def digits(count: int) -> Text:
    """Writes a number with this many decimals."""
    return lambda value: f"{value:.{count}f}"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def shortest(value: float) -> str:
    return f"{value:g}"


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def change(value: float) -> str:
    return f"{100 * value:+.2f} %"


def size(value: float) -> str:
    """Writes a number of bytes in its largest unit."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} B"


def best(values: Iterable[float], better: str | None) -> float | None:
    """The best of several values; None where they are all the same or none is better."""
    found = set(values)
    if better is None or len(found) < 2:
        return None
    return min(found) if better == LESS else max(found)


@dataclass(frozen=True)
class Cell:
    """What is written, what it is sorted by, and whether it is the best of its column."""

    text: str
    value: float | str | None = None
    best: bool = False

    @classmethod
    def of(cls, value: Spread | float | None, text: Text, *, best: float | None = None, signed: bool = False) -> Cell:
        """A number with what it may be off by; `signed` writes its sign also where it is above zero, and none where zero is written."""
        if value is None:
            return cls(markdown.EMPTY)
        mean, std = (value.mean, value.std) if isinstance(value, Spread) else (value, None)
        written = text(mean)
        if signed:
            zero = not any(digit in written for digit in "123456789")
            written = ("" if zero else "+" if mean > 0 else "-") + written.lstrip("+-")
        around = "" if std is None else f" ± {text(std).lstrip('+')}"
        return cls(f"{written}{around}", mean, mean == best)


@dataclass(frozen=True)
class Column(Generic[Record]):
    """Of a table: its heading, a record's value, how that is written, and which of two is better."""

    heading: str
    value: Callable[[Record], Spread | float | None]
    text: Text
    better: str | None = None

    def cells(self, records: Sequence[Record]) -> list[Cell]:
        """The cells of all records."""
        values = [self.value(record) for record in records]
        top = best(
            (value.mean if isinstance(value, Spread) else value for value in values if value is not None), self.better
        )
        return [Cell.of(value, self.text, best=top) for value in values]


@dataclass(frozen=True)
class Table:
    """Headings and rows; the first `left` columns hold words."""

    head: list[str]
    rows: list[list[Cell]]
    left: int = 1

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        columns: Sequence[Column[Record]],
        first: str = "model",
        name: Callable[[Any], str] = attrgetter("label"),
    ) -> Table:
        """A line for each record, which begins with its name under the heading `first`."""
        names = [Cell(name(record), name(record)) for record in records]
        rows = zip(names, *(column.cells(records) for column in columns), strict=True)
        return cls([first, *(column.heading for column in columns)], [list(row) for row in rows])

    def markdown(self, *, bold: bool = True) -> str:
        """The best value of a column is bold."""
        rows = [[f"**{cell.text}**" if bold and cell.best else cell.text for cell in row] for row in self.rows]
        return markdown.table(self.head, rows, left=self.left)
