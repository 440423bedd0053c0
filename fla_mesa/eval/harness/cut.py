"""How many inputs of a task were longer than the context, and lost their beginning.

`lm` is lm-eval's HFLM, whose decorator hides its type from type checkers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from fla_mesa.eval.harness.results import Cut, Results


def cut_inputs(lm: LM, results: Results) -> dict[str, Cut]:
    """Counts from what was asked, so that answers from a cache count as well.

    Args:
        lm: The model; one that is no HFLM cuts by rules of its own, and nothing is counted.
        results: lm-eval's results with its samples.

    Returns:
        By task, for the tasks that have such inputs. Text that is read in windows (loglikelihood_rolling) and bare token ids are never cut.
    """
    if not isinstance(lm, HFLM):
        return {}
    counts: dict[str, Cut] = {}
    for task, rows in results["samples"].items():
        kind = results["configs"][task]["output_type"]
        if kind not in ("loglikelihood", "multiple_choice", "generate_until") or not rows:
            continue
        first = rows[0]["filter"]  # every filter repeats the rows
        requests = [request for row in rows if row["filter"] == first for request in row["arguments"]]
        too_long = _generation_too_long if kind == "generate_until" else _pair_too_long
        if cut := sum(too_long(lm, *request[:2]) for request in requests):
            counts[task] = {"cut": cut, "of": len(requests)}
    return counts


def _pair_too_long(lm: Any, context: str, continuation: str) -> bool:
    return tokens(lm, context + continuation, at_most=lm.max_length) - 1 + (context == "") > lm.max_length


def _generation_too_long(lm: Any, context: str, settings: Mapping[str, object]) -> bool:
    room = lm.max_length - new_tokens(lm, settings)
    return tokens(lm, context, at_most=room) > room


def new_tokens(lm: Any, settings: Mapping[str, object]) -> int:
    """How many tokens a request wants generated, by any of the names that lm-eval knows for it."""
    return int(normalize_gen_kwargs(dict(settings), lm.max_gen_toks).get("max_gen_toks", lm.max_gen_toks))


def tokens(lm: Any, text: str, *, at_most: int) -> int:
    """The tokens of a text; 0 where its bytes, and a special token or two, cannot be more than `at_most` tokens."""
    return 0 if len(text.encode()) + 2 <= at_most else len(lm.tok_encode(text))
