"""Multiple choice scored by the likelihood of a token: the paper's rule (arXiv 2506.05233, appendix N).

lm-eval has the likelihood of a whole choice (acc) and of a character of it (acc_norm).
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from lm_eval.api.metrics import mean_stderr
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from fla_mesa.eval.harness.results import Results

METRIC = "acc_per_token"


def add_accuracy_per_token(lm: LM, results: Results) -> None:
    """Adds `acc_per_token` to the multiple-choice tasks among the results of a model with a tokenizer.

    A choice is scored by its log-likelihood divided by its number of tokens. Left out of tasks whose right answer cannot be told from
    lm-eval's samples.

    Args:
        lm: The model that was asked.
        results: With lm-eval's samples; changed in place.
    """
    if not isinstance(lm, HFLM):
        return
    for task, rows in results["samples"].items():
        if results["configs"][task]["output_type"] != "multiple_choice":
            continue
        scores = [_score(lm, row) for row in rows]
        if not scores or None in scores:
            continue
        right = cast("list[float]", scores)
        error = mean_stderr(right) if len(right) > 1 else "N/A"
        results["results"][task] |= {f"{METRIC},none": float(np.mean(right)), f"{METRIC}_stderr,none": error}
        results["higher_is_better"][task][METRIC] = True


def _score(lm: Any, row: dict[str, Any]) -> float | None:
    """1 or 0; None if the right choice cannot be told."""
    pairs = [(context, continuation) for context, continuation, *_ in row["arguments"]]
    likelihoods = np.array([float(response[0]) for response in row["filtered_resps"]])
    tokens = np.array([_tokens(lm, *pair) for pair in pairs[: len(likelihoods)]])
    if len(set(tokens.tolist())) == 1:
        return row.get("acc")  # of one length: the rules agree
    gold = _gold(row["target"], [continuation for _, continuation in pairs])
    if gold is None or float(likelihoods.argmax() == gold) != row.get("acc"):
        return None
    return float((likelihoods / tokens).argmax() == gold)


def _tokens(lm: Any, context: str, continuation: str) -> int:
    """The tokens of a continuation, as lm-eval parts them from those of its context: spaces at the border are the continuation's."""
    return max(1, len(lm.tok_encode(context + continuation)) - len(lm.tok_encode(context.rstrip())))


def _gold(target: object, choices: list[str]) -> int | None:
    if isinstance(target, int) and 0 <= target < len(choices):
        return target
    text = str(target)
    if text.isdigit() and int(text) < len(choices):
        return int(text)
    matches = [i for i, choice in enumerate(choices) if choice.strip() == text.strip()]
    return matches[0] if len(matches) == 1 else None
