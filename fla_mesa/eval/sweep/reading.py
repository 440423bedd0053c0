"""What the sweep reads: the same held-out text in contexts of several lengths, and a recall task; or a synthetic suite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from fla_mesa.data import synthetic
from fla_mesa.data.documents import random_blocks
from fla_mesa.data.needles import fitted
from fla_mesa.data.synthetic import IGNORE
from fla_mesa.data.synthetic.mqar import MQAR
from fla_mesa.data.synthetic.own_haystack_niah import OwnHaystackNIAH
from fla_mesa.errors import UserError

_SHORTEST_NEEDLE = 220  # characters that hold variant 1's needle, question and answer


@dataclass(frozen=True)
class Recall:
    """A recall task: `score` takes the greedy next token after each position of `ids`, both ``[m, length]``."""

    ids: torch.Tensor
    score: Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Reading:
    """Sequences of one context length.

    Attributes:
        length: Tokens of context.
        ids: int64 ``[n, length]``.
        labels: Targets for the loss, -100 where there is none; the model shifts by one inside.
        recall: The recall task; None if it does not fit into this length.
        recall_name: What it is.
    """

    length: int
    ids: torch.Tensor
    labels: torch.Tensor
    recall: Recall | None
    recall_name: str


def read_text(
    tokenizer: PreTrainedTokenizerBase, text: str, lengths: list[int], sequences: int, needles: int, seed: int
) -> list[Reading]:
    """Held-out text: `sequences` blocks of the longest length, cut into the shorter ones, so that every length reads the same tokens.

    Args:
        tokenizer: The checkpoint's.
        text: See :func:`fla_mesa.data.documents.read_documents`.
        lengths: Context lengths; each must divide the longest.
        sequences: Blocks of the longest length.
        needles: Documents of own-haystack-niah, variant 1, at each length; the answer's tokens are what is recalled.
        seed: Of the blocks' choice and of the needles.

    Raises:
        UserError: A length does not divide the longest.
    """
    longest = max(lengths)
    for length in lengths:
        if longest % length:
            raise UserError(f"context_lengths must all divide the longest, {longest}; got {length}")
    ids = torch.from_numpy(random_blocks(text, tokenizer, longest, sequences, seed))
    readings = []
    for length in lengths:
        blocks, recall = ids.reshape(-1, length), _needles(tokenizer, length, needles, seed)
        readings.append(Reading(length, blocks, blocks, recall, "own-haystack-niah-1, answer tokens"))
    return readings


def read_suite(spec: str, lengths: list[int], sequences: int) -> list[Reading]:
    """A synthetic suite's validation split; its scored positions are the loss's, and its own rule scores what is recalled.

    MQAR is asked at every length, with its number of pairs; other suites at their own only.
    """
    suite = synthetic.get(spec)
    task = suite.validation[0][0]
    tasks = [replace(task, length=length) for length in lengths] if isinstance(task, MQAR) else [task]
    readings = []
    for one in tasks:
        rows = one.generate("validation", sequences, suite.seed)
        ids, labels = (torch.from_numpy(rows[key]) for key in ("input_ids", "labels"))
        recall = Recall(ids, lambda guesses, one=one, rows=rows: float(one.scores(guesses, rows).mean()))
        readings.append(Reading(one.columns, ids, labels, recall, suite.name))
    return readings


def _needles(tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int) -> Recall | None:
    """Needle documents that end within `length` tokens, padded on the right; None if none is that short."""
    task, rng = OwnHaystackNIAH(variant=1), np.random.default_rng([seed, length])
    ids = torch.zeros(count, length, dtype=torch.long)
    labels = torch.full((count, length), IGNORE, dtype=torch.long)
    try:
        documents = list(islice(fitted(task, tokenizer, length, rng, _SHORTEST_NEEDLE), count))
    except ValueError:
        return None
    for row, (_, context, answer) in enumerate(documents):
        whole = torch.tensor(context + answer)
        ids[row, : len(whole)] = whole
        labels[row, len(context) : len(whole)] = whole[len(context) :]

    def answer_tokens(guesses: np.ndarray) -> float:
        right, scored = task.correct(guesses, {"labels": labels.numpy()})
        return float(right.sum() / scored.sum())

    return Recall(ids, answer_tokens)
