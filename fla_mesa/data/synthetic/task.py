"""The base of every synthetic task: frozen parameters, a generator of disjoint splits, and a score.

Labels follow the convention of causal language models in transformers: the model shifts by one inside, so that the
logits at position t are compared with labels[t + 1], and -100 is not scored. For a task whose paper reads L symbols
and is asked at the last of them too, the arrays therefore have L + 1 columns:

    input_ids[:, :-1]   what the paper's model reads
    labels[:, 1:]       the paper's targets
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fla_mesa.data.synthetic.checks import check_choice, check_int
from fla_mesa.data.synthetic.draw import hash_rows
from fla_mesa.errors import UserError

SPLITS = ("train", "validation", "test")
IGNORE = -100
Rows = dict[str, np.ndarray]

# The top two bits of a row's hash say which split it belongs to: a half, a quarter, a quarter.
_SPLIT_OF_BUCKET = np.array([0, 0, 1, 2])
# Random draws until a split is full; a task with so few different rows that this is not enough is an error.
_MAX_DRAWS = 200


@dataclass(frozen=True)
class Task(ABC):
    """Base class of all tasks. A subclass is a frozen dataclass of its paper's parameters."""

    name: ClassVar[str]
    paper: ClassVar[str]
    is_text: ClassVar[bool] = False  # whether token ids are bytes of text

    @property
    def setting(self) -> str:
        """A short name that distinguishes these parameters within a suite."""
        return self.name

    @property
    @abstractmethod
    def symbols(self) -> int:
        """Number of token ids a model of this task needs."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """Width of the arrays that `generate` returns."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, n: int, split: str) -> Rows:
        """n random rows, before they are divided into splits."""

    def identity(self, rows: Rows) -> np.ndarray:
        """[n] uint64: rows with equal identity are never in different splits. By default a hash of the tokens."""
        return hash_rows(rows["input_ids"])

    def generate(self, split: str, n: int, seed: int = 0) -> Rows:
        """n sequences of a split; the same for the same (parameters, split, n, seed).

        Splits are disjoint whatever the seeds and sizes, because a hash of each row's identity decides where it
        belongs.

        Args:
            split: 'train', 'validation' or 'test'.
            n: number of sequences, >= 1.
            seed: >= 0.

        Returns:
            {"input_ids": int64 [n, L], "labels": int64 [n, L]}, labels[t + 1] being the target of the logits at t and
            -100 where nothing is scored. RegBench adds "allowed".

        Raises:
            UserError: An argument is not allowed, or the task has too few different sequences to fill the split.
        """
        check_choice(self.name, "split", split, SPLITS)
        check_int(self.name, "n", n, 1)
        check_int(self.name, "seed", seed, 0)
        wanted = SPLITS.index(split)
        rng = np.random.default_rng([seed, wanted, zlib.crc32(repr(self).encode())])
        kept: list[Rows] = []
        missing = n
        for _ in range(_MAX_DRAWS):
            # In expectation a draw fills the split; what is missing after it is drawn again.
            rows = self.draw(rng, 16 + missing * (2 if wanted == 0 else 4), split)
            bucket = (self.identity(rows) >> np.uint64(62)).astype(np.int64)
            mine = np.flatnonzero(_SPLIT_OF_BUCKET[bucket] == wanted)[:missing]
            kept.append({key: column[mine] for key, column in rows.items()})
            missing -= len(mine)
            if missing == 0:
                return {key: np.concatenate([part[key] for part in kept]) for key in kept[0]}
        raise UserError(
            f"{self.name}: only {n - missing} of {n} sequences found for split {split!r}; these parameters allow too "
            f"few different sequences ({self}): use a larger vocabulary or longer sequences"
        )

    def correct(self, predictions: np.ndarray, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Which predictions are right, and where they count.

        Args:
            predictions: integer [n, L]; predictions[:, t] is the greedy next token after reading position t
                (the argmax of the logits at t). The last column predicts nothing that is known.
            rows: what `generate` returned.

        Returns:
            (right, scored): boolean [n, L - 1] each; column t is about the target labels[:, t + 1].

        Raises:
            UserError: `predictions` does not have the shape of the labels.
        """
        predictions, labels = np.asarray(predictions), np.asarray(rows["labels"])
        if predictions.shape != labels.shape:
            raise UserError(
                f"{self.name}: predictions must have the labels' shape {labels.shape}, got {predictions.shape}"
            )
        scored = labels[:, 1:] != IGNORE
        return (predictions[:, :-1] == labels[:, 1:]) & scored, scored

    def scores(self, predictions: np.ndarray, rows: Rows) -> np.ndarray:
        """[n] float64: the score of each sequence, its share of correct predictions."""
        right, scored = self.correct(predictions, rows)
        return right.sum(axis=1) / np.maximum(scored.sum(axis=1), 1)

    def metric(self, predictions: np.ndarray, rows: Rows) -> dict[str, float]:
        """Mean of `scores` over the sequences, and its standard error.

        Where every sequence has the same number of scored positions this is the accuracy over all positions; elsewhere
        each sequence, not each position, has the same weight, since the sequences are what is independent.
        """
        scores = self.scores(predictions, rows)
        spread = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else float("nan")
        return {"accuracy": float(scores.mean()), "accuracy_stderr": float(spread)}
