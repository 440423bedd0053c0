"""Suites of tasks: the paper's benchmarks (arXiv 2506.05233, tables 14 and 16) by lm-eval's names, and this package's own."""

from __future__ import annotations

from fla_mesa.errors import UserError
from fla_mesa.eval.harness.tasks import synthetic_tasks

# The paper also has RACE-M, which lm-eval has not: its `race` is RACE-H. TQA, NQ and DROP are questions in lm-eval and completions in the
# paper.
_PAPER = {
    "paper-zeroshot": (
        "lambada_openai",
        "hellaswag",
        "piqa",
        "arc_easy",
        "arc_challenge",
        "winogrande",
        "social_iqa",
        "boolq",
        "openbookqa",
        "storycloze_2016",
        "race",
    ),
    "paper-recall": ("swde", "squad_completion", "fda", "triviaqa", "nq_open", "drop"),
}
SUITES = (*_PAPER, "synthetic")


def tasks_of(suite: str) -> list[str]:
    """The names of a suite's tasks.

    Raises:
        UserError: There is no such suite.
    """
    if suite == "synthetic":
        return list(synthetic_tasks())
    if suite not in _PAPER:
        raise UserError(f"unknown suite {suite!r}; allowed: {', '.join(SUITES)}")
    return list(_PAPER[suite])
