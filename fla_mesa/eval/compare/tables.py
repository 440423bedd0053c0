"""Tables of models by columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fla_mesa.eval.compare.columns import COLUMNS, LESS, Spread
from fla_mesa.eval.compare.paired import Difference
from fla_mesa.eval.compare.pictures import Picture
from fla_mesa.eval.compare.plan import Point
from fla_mesa.eval.compare.results import ModelResult, Report
from fla_mesa.markdown import EMPTY, table

Of = Callable[[ModelResult], "Spread | None"]


@dataclass(frozen=True)
class Cell:
    """What is written, what it is sorted by, and whether it is the best of its column."""

    text: str
    value: float | str | None = None
    best: bool = False


@dataclass(frozen=True)
class Table:
    head: list[str]
    rows: list[list[Cell]]

    def markdown(self, *, bold: bool = True) -> str:
        """The best value of a column is bold."""
        return table(
            self.head,
            [[f"**{cell.text}**" if bold and cell.best else cell.text for cell in row] for row in self.rows],
        )

    @classmethod
    def of(cls, models: Sequence[ModelResult], columns: Sequence[Shown]) -> Table:
        """A line for each model."""
        names = [Cell(model.label, model.label) for model in models]
        rows = zip(names, *(column.cells(models) for column in columns), strict=True)
        return cls(["model", *(column.heading for column in columns)], [list(row) for row in rows])


@dataclass(frozen=True)
class Section:
    """Of a report: its heading, then tables, pictures, paragraphs and lists, whose lines begin with "- "."""

    head: str
    blocks: Sequence[Table | Picture | str]


@dataclass(frozen=True)
class Shown:
    """A column of a table: its heading, a row's value, how that is written, and which of two is better."""

    heading: str
    value: Of
    text: Callable[[float], str]
    better: str | None = None
    name: str = ""  # of the column that it shows, and its key
    key: str = ""

    def cells(self, models: Sequence[ModelResult]) -> list[Cell]:
        """Of each model."""
        values = [self.value(model) for model in models]
        means = {value.mean for value in values if value is not None}
        best = None
        if self.better is not None and len(means) > 1:
            best = min(means) if self.better == LESS else max(means)
        return [self._cell(value, best) for value in values]

    def _cell(self, value: Spread | None, best: float | None) -> Cell:
        if value is None:
            return Cell(EMPTY)
        text = self.text(value.mean)
        if value.std is not None:
            text += f" ± {self.text(value.std).lstrip('+')}"
        return Cell(text, value.mean, value.mean == best)


def shown_columns(report: Report, kind: str) -> list[Shown]:
    """The columns of a table, "quality" or "speed": those that some model has a value for."""
    shown = []
    for name, column in COLUMNS.items():
        found = [figure for model in report.models if isinstance(figure := model.figures[name], Mapping)]
        covered = any(model.figures[other] is not None for model in report.models for other in column.unless)
        if column.table != kind or covered or not found:
            continue
        keys = column.shown(list(dict.fromkeys(key for figure in found for key in figure)), report.run["seq_len"])
        for key in keys:
            value: Of = lambda model, name=name, key=key: model.spread(name, key)  # noqa: E731
            shown.append(Shown(column.heading.format(key), value, column.text, column.better, name, key))
        if name == "parameters":
            shown.append(Shown("lr", _of_point(lambda point: point.learning_rate), _shortest))
            if len(report.plan.weight_decays) > 1:
                shown.append(Shown("weight decay", _of_point(lambda point: point.weight_decay), _shortest))
    return shown


def _of_point(value: Callable[[Point], float]) -> Of:
    return lambda model: None if model.point is None else Spread(value(model.point))


def _shortest(value: float) -> str:
    return f"{value:g}"


def differences(report: Report) -> Table | None:
    """How models differ from the baseline; None if there is nothing to hold them against."""
    base = report.baseline
    if base is None:
        return None
    shown = [column for column in shown_columns(report, "quality") if column.better is not None and column.name]
    rows = [
        [Cell(model.label, model.label), *(_written(difference(model, base, column), column.text) for column in shown)]
        for model in report.finished
        if model is not base
    ]
    return Table(["model", *(column.heading for column in shown)], rows)


def difference(model: ModelResult, base: ModelResult, column: Shown) -> Difference | None:
    values, others = (of.values(column.name, column.key) for of in (model, base))
    return Difference.of(values, others) if values and len(values) == len(others) else None


def _written(difference: Difference | None, text: Callable[[float], str]) -> Cell:
    if difference is None:
        return Cell(EMPTY)
    mean = f"{'+' if difference.mean > 0 else ''}{text(difference.mean)}"
    return Cell(mean if difference.half is None else f"{mean} ± {text(difference.half)}", difference.mean)


def table_rows(report: Report, kind: str) -> list[ModelResult]:
    """The models of a table: all of them, or of the solver those that have one."""
    names = [name for name, column in COLUMNS.items() if column.table == kind]
    of_some = kind == "solver"
    return [m for m in report.models if not of_some or any(m.figures.get(name) is not None for name in names)]
