"""What a comparison shows while it runs: bars where there is a terminal, lines that stay everywhere; and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from fla_mesa.train.progress import clock


class Estimate:
    """How much of all work is done and how long the rest takes, by what finished work of its kind has taken.

    Args:
        trainings, measurements: Pieces of work in all.
        stored: How many of each kind, "train" and "measure", will be found finished.
    """

    def __init__(self, trainings: int, measurements: int, stored: Mapping[str, int] | None = None):
        self.todo = {"train": trainings, "measure": measurements}
        self._stored = {"train": 0, "measure": 0, **(stored or {})}
        self.total = trainings + measurements
        self._times: dict[str, list[float]] = {"train": [], "measure": []}
        self._begin = time.perf_counter()

    @property
    def done(self) -> int:
        """How many pieces of work are done."""
        return self.total - sum(self.todo.values())

    def expect(self, trainings: int) -> None:
        """Adds trainings that were not planned."""
        self.todo["train"] += trainings
        self.total += trainings

    def skip(self, kind: str, count: int) -> None:
        """Counts planned work that is not needed as done."""
        self.todo[kind] -= count

    def start(self) -> None:
        """Notes that a piece of work begins."""
        self._begin = time.perf_counter()

    def finish(self, kind: str, *, ran: bool) -> None:
        """Notes that it is done; its time counts only if it `ran` and was not found finished."""
        self.todo[kind] -= 1
        if ran:
            self._times[kind].append(time.perf_counter() - self._begin)
        else:
            self._stored[kind] = max(0, self._stored[kind] - 1)

    def left(self, kind: str | None = None, share: float = 0.0) -> str:
        """The time left: "about 3:20 left", or nothing while that is unknown.

        Args:
            kind: What is being worked on, if anything is.
            share: How much of that is done; 0 if it does not tell.
        """
        spent = time.perf_counter() - self._begin
        means = {name: sum(times) / len(times) for name, times in self._times.items() if times}
        if kind is not None and kind not in means and share > 0.02:
            means[kind] = spent / share
        if "train" not in means:
            return ""
        means.setdefault("measure", 0.3 * means["train"])  # a guess until one is done
        seconds = sum(means[name] * max(0, count - self._stored[name]) for name, count in self.todo.items())
        if kind is not None:
            seconds -= share * means[kind] if share > 0 else min(spent, means[kind])
        return f"about {clock(seconds)} left"


class Display:
    """Progress of all cells and of the one at work. A context manager: bars move inside.

    Args:
        console: Where to; by default standard error.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(24),
            TaskProgressColumn(),
            TextColumn("{task.fields[what]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._all = self._bars.add_task("all", total=None, what="")
        self._one = self._bars.add_task("", total=1.0, what="", visible=False)

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, markup=False, highlight=False)

    def move(self, done: float, total: int, left: str, name: str, share: float, what: str) -> None:
        """Shows how far all work and a piece of it are.

        Args:
            done: Pieces of work that are done.
            total: Of so many.
            left: Time left, in words.
            name: The piece at work.
            share: How much of it is done, in [0, 1].
            what: What is being done.
        """
        self._bars.update(self._all, completed=done + share, total=total, what=left)
        self._bars.update(self._one, description=name, completed=share, what=what, visible=True)
