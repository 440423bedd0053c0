"""Suites of tasks by name: the paper's benchmarks (arXiv 2506.05233, appendix L), and what `fla-mesa compare --suite` trains on."""

from __future__ import annotations

from dataclasses import dataclass

from fla_mesa.data import synthetic
from fla_mesa.errors import UserError
from fla_mesa.eval.harness.paper_tasks import SHOTS
from fla_mesa.eval.harness.tasks import settings, synthetic_tasks
from fla_mesa.eval.suites import SUITES as LEARNT


@dataclass(frozen=True)
class Suite:
    """Tasks that are reported together.

    Attributes:
        parts: Tasks by the name of their part.
        averaged: Whether the table ends in the average of each part.
        context: Tokens that an input and its answer have together, where the suite says so.
    """

    parts: dict[str, tuple[str, ...]]
    averaged: bool = False
    context: int | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks."""
        return tuple(task for part in self.parts.values() for task in part)


# Table 14. Global tasks are those at which a longer window of attention helps. RACE-M is missing: lm-eval's `race` is RACE-H.
_GLOBAL = ("lambada_openai", "hellaswag", "race")
_LOCAL = ("piqa", "winogrande", "arc_easy", "arc_challenge", "social_iqa", "boolq", "openbookqa", "storycloze_2016")
# Table 16. Inputs are cut to 2,000 tokens, which leaves 48 of 2,048 for the answer. The paper does not say which length of NQ it took.
_RECALL = ("swde", "squad_completion", "fda", "triviaqa_completion", "nq_completion_2048", "drop_completion")

_PAPER = {
    "paper-zeroshot": Suite({"global": _GLOBAL, "local": _LOCAL}, averaged=True),
    "paper-recall": Suite({"recall": _RECALL}, averaged=True, context=2048),
    # Table 17: the two of GPT-3's five tasks at which models of this size are better than chance.
    "paper-fewshot": Suite(
        {
            kind: tuple(f"scrambled_{kind}_{shots}shot" for shots in SHOTS)
            for kind in ("cycle_letters", "mid_word_2_anagrams")
        }
    ),
    # Table 19. RULER does not count the words that the answer is begun with.
    "paper-needles": Suite(
        {haystack: tuple(f"niah_{haystack}_{length}" for length in (2048, 4096)) for haystack in ("noise", "essay")},
        context=4096 + 128,
    ),
}
_TEXT = ("heldout_bits_per_byte", "heldout_loss_by_position")
SUITES = (*_PAPER, *LEARNT, "synthetic")


def suite(name: str) -> Suite:
    """A suite by name.

    Raises:
        UserError: There is no such suite.
    """
    if name == "synthetic":
        return Suite({"synthetic": tuple(synthetic_tasks())})
    if name == "text":
        return Suite({name: _TEXT})
    if name in LEARNT:
        tasks = [task for source in LEARNT[name] for task in settings(synthetic.get(source))]
        return Suite({name: tuple(tasks)}, averaged=len(tasks) > 1)
    if name not in _PAPER:
        raise UserError(f"suite: allowed are {', '.join(SUITES)}; got {name!r}")
    return _PAPER[name]


def context_of(names: list[str]) -> int | None:
    """The context that suites ask for, None if they leave it open.

    Raises:
        UserError: They ask for different ones, which no table can have.
    """
    asked = {name: context for name in names if (context := suite(name).context) is not None}
    if len(set(asked.values())) > 1:
        each = ", ".join(f"{name} {context:,}" for name, context in asked.items())
        raise UserError(
            f"suite: {each} tokens of context; evaluate them one after the other, or pass --model_args max_length=N"
        )
    return next(iter(asked.values()), None)
