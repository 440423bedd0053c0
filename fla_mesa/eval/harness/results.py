"""What lm-eval gave for one model, and what was skipped and cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

Results = dict[str, Any]  # as lm_eval.result_schema.EvalResults describes it

# The parts of lm-eval's results that have an entry for each task.
_PER_TASK = [
    "results",
    "groups",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "higher_is_better",
    "n-samples",
    "samples",
]


class Cut(TypedDict):
    """How many of how many inputs were longer than the context."""

    cut: int
    of: int


@dataclass
class Evaluation:
    """What one model gave.

    Attributes:
        results: lm-eval's results of the tasks that ran, put together; empty if none did.
        skipped: Tasks that could not be run, and why.
        cut: By task, how many inputs were cut.
        max_length: The longest context in tokens; None for a model that does not say.
    """

    results: Results = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    cut: dict[str, Cut] = field(default_factory=dict)
    max_length: int | None = None

    def add(self, results: Results) -> None:
        """Take in the results of one more task; what is not about a task (the machine, the date) is the first's."""
        for part, value in results.items():
            if part in _PER_TASK:
                self.results.setdefault(part, {}).update(value)
            else:
                self.results.setdefault(part, value)
