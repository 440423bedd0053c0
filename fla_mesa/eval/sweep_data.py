"""What the sweep reads: the same held-out text in contexts of several lengths, and a recall task; or a synthetic suite."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from fla_mesa.data import synthetic
from fla_mesa.data.synthetic.mqar import MQAR
from fla_mesa.data.synthetic.own_haystack_niah import OwnHaystackNIAH
from fla_mesa.errors import UserError
from fla_mesa.eval import heldout

IGNORE = synthetic.IGNORE


@dataclass(frozen=True)
class Reading:
    """Sequences of one context length.

    Attributes:
        length: Tokens of context.
        ids: int64 ``[n, length]``.
        labels: Targets for the loss, -100 where there is none; the model shifts by one inside.
        recall_ids, recall_labels: The same for the recall task, ``[m, length]``; None if it does not fit into this length.
        recall_name: What the recall task is.
    """

    length: int
    ids: torch.Tensor
    labels: torch.Tensor
    recall_ids: torch.Tensor | None
    recall_labels: torch.Tensor | None
    recall_name: str


def read_text(
    tokenizer: PreTrainedTokenizerBase, text: str, lengths: list[int], sequences: int, needles: int, seed: int
) -> list[Reading]:
    """Held-out text: `sequences` blocks of the longest length, cut into the shorter ones, so that every length reads the same tokens.

    Args:
        tokenizer: The checkpoint's.
        text: See :func:`fla_mesa.eval.heldout.read_documents`.
        lengths: Context lengths; each must divide the longest.
        sequences: Blocks of the longest length.
        needles: Documents of own-haystack-niah, variant 1, at each length; the answer's tokens are what is recalled.
        seed: Of the blocks' choice and of the needles.
    """
    longest = max(lengths)
    for length in lengths:
        if longest % length:
            raise UserError(f"context_lengths must all divide the longest, {longest}; got {length}")
    ids = _blocks(tokenizer, text, longest, sequences, seed)
    readings = []
    for length in lengths:
        recall = _needles(tokenizer, length, needles, seed)
        blocks = ids.reshape(-1, length)
        recall_ids, recall_labels = (None, None) if recall is None else recall
        readings.append(
            Reading(length, blocks, blocks, recall_ids, recall_labels, "own-haystack-niah-1, answer tokens")
        )
    return readings


def read_suite(spec: str, lengths: list[int], sequences: int) -> list[Reading]:
    """A synthetic suite's validation split; its scored positions are both the loss and what is recalled.

    MQAR is asked at every length, with its number of pairs; other suites at their own only.
    """
    suite = synthetic.get(spec)
    task = suite.validation[0][0]
    tasks = [replace(task, length=length) for length in lengths] if isinstance(task, MQAR) else [task]
    readings = []
    for one in tasks:
        rows = one.generate("validation", sequences, suite.seed)
        ids, labels = (torch.from_numpy(rows[key]) for key in ("input_ids", "labels"))
        readings.append(Reading(one.columns, ids, labels, ids, labels, suite.name))
    return readings


def _blocks(tokenizer: PreTrainedTokenizerBase, text: str, length: int, count: int, seed: int) -> torch.Tensor:
    """`count` random whole blocks of the documents joined; some documents are shorter than a long context."""
    end = cast("int | None", tokenizer.eos_token_id)
    stream: list[int] = []
    for document in heldout.read_documents(text):
        stream.extend(cast("list[int]", tokenizer(document, add_special_tokens=False)["input_ids"]))
        stream.extend([] if end is None else [end])
    available = len(stream) // length
    if available < count:
        raise UserError(
            f"held-out text: {len(stream)} tokens hold {available} blocks of {length}; {count} are wanted (sequences)"
        )
    chosen = np.sort(np.random.default_rng(seed).choice(available, size=count, replace=False))
    return torch.tensor([stream[i * length : (i + 1) * length] for i in chosen.tolist()])


def _needles(
    tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Needle documents that end within `length` tokens, padded on the right; None if none is that short."""
    task, rng = OwnHaystackNIAH(variant=1), np.random.default_rng([seed, length])
    ids = torch.zeros(count, length, dtype=torch.long)
    labels = torch.full((count, length), IGNORE, dtype=torch.long)
    per_token = 1.0
    for row in range(count):
        for _ in range(20):
            characters = int(length * per_token)
            if characters < 220:
                return None
            document = task.document(rng, length=characters)
            context, answer = (
                tokenizer(part, add_special_tokens=False)["input_ids"] for part in (document.context, document.answer)
            )
            if len(context) + len(answer) <= length:
                break
            per_token *= 0.95 * length / (len(context) + len(answer))
        else:
            return None
        whole = torch.tensor(context + answer)
        ids[row, : len(whole)] = whole
        labels[row, len(context) : len(whole)] = whole[len(context) :]
    return ids, labels
