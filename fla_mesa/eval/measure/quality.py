"""What a model gets right: its loss by position, and its score on a synthetic task.

Shapes: N sequences, B of them in a batch, T positions, V tokens. Labels are the tokens themselves where they count and ``IGNORE`` where
they do not; the logits at position t are compared with the label at t + 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from fla_mesa.data.synthetic import IGNORE, Task

Rows = dict[str, np.ndarray]


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats of each token but the first, float32 ``[B, T - 1]``; 0 where nothing is scored.

    Args:
        logits: ``[B, T, V]``, any floating dtype.
        labels: int64 ``[B, T]``.
    """
    # A row at a time, because float32 logits of long rows are large.
    rows = zip(logits[:, :-1], labels[:, 1:], strict=True)
    return torch.stack([F.cross_entropy(x.float(), y, ignore_index=IGNORE, reduction="none") for x, y in rows])


@dataclass(frozen=True)
class PositionLosses:
    """Losses of N sequences, summed over the sequences.

    Attributes:
        nats: float64 ``[T - 1]``, of the tokens at positions 1, 2, ...
        tokens: float64 ``[T - 1]``, how many of these were scored.
    """

    nats: torch.Tensor
    tokens: torch.Tensor

    @property
    def mean(self) -> float:
        """Nats a scored token."""
        return (self.nats.sum() / self.tokens.sum()).item()

    @property
    def curve(self) -> list[float]:
        """Nats a scored token at positions 1, 2, ..., up to the last before the first where nothing is scored."""
        scored = int((self.tokens > 0).long().cumprod(0).sum())
        return (self.nats / self.tokens)[:scored].tolist()

    def between(self, first: int, end: int) -> float | None:
        """Nats a scored token at positions first to end - 1; None if nothing is scored there."""
        nats, tokens = (sums[first - 1 : end - 1].sum() for sums in (self.nats, self.tokens))
        return (nats / tokens).item() if tokens > 0 else None


@torch.no_grad()
def loss_by_position(
    model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor, batch_size: int
) -> PositionLosses:
    """The loss at each position of sequences of one length.

    Args:
        model: Ready to be evaluated.
        ids, labels: int64 ``[N, T]``.
        batch_size: Sequences at a time; changes no figure beyond rounding.
    """
    nats, tokens = (torch.zeros(ids.shape[1] - 1, dtype=torch.float64) for _ in range(2))
    for part, wanted in zip(ids.split(batch_size), labels.split(batch_size), strict=True):
        wanted = wanted.to(model.device)
        losses = token_losses(model(part.to(model.device), use_cache=False).logits, wanted)
        for row, label in zip(losses, wanted, strict=True):
            nats += row.double().cpu()
            tokens += (label[1:] != IGNORE).double().cpu()
    return PositionLosses(nats, tokens)


@torch.no_grad()
def greedy(model: PreTrainedModel, ids: torch.Tensor, batch_size: int) -> np.ndarray:
    """The most likely next token after each position, int64 ``[N, T]``."""
    parts = (part.to(model.device) for part in ids.split(batch_size))
    return torch.cat([model(part, use_cache=False).logits.argmax(-1).cpu() for part in parts]).numpy()


def score(model: PreTrainedModel, data: Sequence[tuple[Task, Rows]], batch_size: int) -> dict[str, float]:
    """Accuracy on a synthetic suite by the rule of each of its tasks, averaged over the sequences.

    Args:
        model: Ready to be evaluated.
        data: Tasks and rows, as :meth:`fla_mesa.data.synthetic.Suite.generate` makes them.
        batch_size: Sequences at a time.

    Returns:
        ``accuracy``, and ``accuracy/SETTING`` of each task where there are several.
    """
    scores = [task.scores(greedy(model, torch.from_numpy(rows["input_ids"]), batch_size), rows) for task, rows in data]
    found = {"accuracy": float(np.concatenate(scores).mean())}
    if len(data) > 1:
        of_each = zip(data, scores, strict=True)
        found |= {f"accuracy/{task.setting}": float(values.mean()) for (task, _), values in of_each}
    return found


def position_ranges(length: int) -> list[tuple[int, int]]:
    """Ranges [first, end) of positions that double in size: 1-15, 16-31, 32-63, ... up to `length`."""
    edges = [1]
    while edges[-1] < length:
        edges.append(min(max(2 * edges[-1], 16), length))
    return list(itertools.pairwise(edges))


def range_name(positions: tuple[int, int]) -> str:
    """A range [first, end) as "first-last"."""
    return f"{positions[0]}-{positions[1] - 1}"
