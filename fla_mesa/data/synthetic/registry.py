"""Registry of synthetic tasks, so that a task is one file: a line in `suite.py`, or a plug-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fla_mesa.data.synthetic.task import Task

Segments = tuple[tuple[Task, int], ...]
Mixture = Callable[[], tuple[Segments, Segments, Segments]]
Decorated = TypeVar("Decorated", bound=type[Task])


@dataclass(frozen=True)
class Entry:
    """How to build a suite from a task.

    Attributes:
        task: Its class, a frozen dataclass of its parameters.
        sizes: Sequences to train on, to validate with and to test by, where a spec does not say.
        fixed: Parameters that the suite's name stands for, and no spec changes.
        mixture: What the suite is where a spec names no parameter of the task: train, validation and test of several settings.
    """

    task: type[Task]
    sizes: tuple[int, int, int]
    fixed: dict[str, Any]
    mixture: Mixture | None


REGISTRY: dict[str, Entry] = {}


def register(
    name: str, *, sizes: tuple[int, int, int], mixture: Mixture | None = None, **fixed: Any
) -> Callable[[Decorated], Decorated]:
    """Decorator that registers a task as a suite, for both `--data` and `--suite`.

    Args:
        name: Of the suite; words with hyphens between.
        sizes, mixture, fixed: As in :class:`Entry`.

    Raises:
        ValueError: The name is taken.
    """

    def add(task: Decorated) -> Decorated:
        if name in REGISTRY:
            raise ValueError(f"name: {name!r} is already a synthetic task, {REGISTRY[name].task.__name__}")
        REGISTRY[name] = Entry(task, sizes, fixed, mixture)
        return task

    return add
