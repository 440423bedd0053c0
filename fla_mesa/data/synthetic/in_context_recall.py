"""In-context recall and noisy in-context recall, two of MAD's six tasks.

    Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844.

A sequence of key-value pairs. Each sequence has its own random map from keys to values; a key that has been seen before
can therefore be answered, and those answers are scored:

    input_ids     a X c Y b X a X c Y          keys a..h, values P..X, one map a sequence
    scored                      ^   ^          (the values of repeated keys)

The noisy task replaces a share of the pairs by two symbols of a vocabulary of their own that mean nothing:

    input_ids     a X # % c Y & # a X
    scored                          ^

As in the authors' code, training learns every next symbol and only the evaluation is restricted to the answers
(train_on='answers' restricts both), and the last pair always repeats an earlier key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fla_mesa.data.synthetic.checks import check_choice, check_int, check_share
from fla_mesa.data.synthetic.registry import register
from fla_mesa.data.synthetic.task import IGNORE, Rows, Task
from fla_mesa.errors import UserError


@register("mad-in-context-recall", sizes=(12_800, 1_280, 1_280))
@dataclass(frozen=True)
class InContextRecall(Task):
    """Parameters of in-context recall. vocab_size counts keys, values and noise symbols together."""

    name: ClassVar[str] = "mad-in-context-recall"
    paper: ClassVar[str] = "arXiv 2403.17844"

    vocab_size: int = 16
    length: int = 128
    noise_vocab_size: int = 0
    noise_share: float = 0.0
    train_on: str = "all"

    def __post_init__(self) -> None:
        check_int(self.name, "noise_vocab_size", self.noise_vocab_size, 0)
        check_int(self.name, "vocab_size", self.vocab_size, 4 + self.noise_vocab_size)
        check_int(self.name, "length", self.length, 4)
        if self.length % 2:
            raise UserError(f"{self.name}: length must be even, got {self.length!r}")
        check_share(self.name, "noise_share", self.noise_share)
        if self.noise_share > 0 and self.noise_vocab_size == 0:
            raise UserError(f"{self.name}: noise_vocab_size must be >= 1 where noise_share is above 0, got 0")
        check_choice(self.name, "train_on", self.train_on, ("all", "answers"))

    @property
    def symbols(self) -> int:
        return self.vocab_size

    @property
    def columns(self) -> int:
        return self.length

    def draw(self, rng: np.random.Generator, n: int, split: str) -> Rows:
        pairs, content = self.length // 2, self.vocab_size - self.noise_vocab_size
        num_keys = content // 2
        value_of_key = rng.integers(num_keys, content, size=(n, num_keys))
        keys = rng.integers(0, num_keys, size=(n, pairs))
        noise = rng.random((n, pairs)) < self.noise_share
        noise[:, -1] = False
        # At least one pair besides the last is a pair, so that the last one has something to repeat.
        noise[np.arange(n), rng.integers(0, pairs - 1, size=n)] = False
        keys[:, -1] = _one_of(rng, keys[:, :-1], ~noise[:, :-1])

        tokens = np.stack([keys, np.take_along_axis(value_of_key, keys, axis=1)], axis=2)  # [n, pairs, 2]
        noise_symbols = rng.integers(content, self.vocab_size, size=tokens.shape) if self.noise_vocab_size else tokens
        tokens = np.where(noise[:, :, None], noise_symbols, tokens)

        labels = np.full(tokens.shape, IGNORE, dtype=np.int64)
        repeated = ~noise & _seen_before(np.where(noise, -1, keys), num_keys)
        labels[:, :, 1] = np.where(repeated, tokens[:, :, 1], IGNORE)
        input_ids, labels = tokens.reshape(n, self.length), labels.reshape(n, self.length)
        return {"input_ids": input_ids, "labels": input_ids.copy() if _learn_all(self.train_on, split) else labels}


@register("mad-noisy-in-context-recall", sizes=(12_800, 1_280, 1_280))
@dataclass(frozen=True)
class NoisyInContextRecall(InContextRecall):
    """The noisy variant with the paper's values: 16 content symbols, 16 noise symbols, a fifth of the pairs are noise."""

    name: ClassVar[str] = "mad-noisy-in-context-recall"

    vocab_size: int = 32
    noise_vocab_size: int = 16
    noise_share: float = 0.2


def _learn_all(train_on: str, split: str) -> bool:
    return split == "train" and train_on == "all"


def _one_of(rng: np.random.Generator, values: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """[n]: a random element of each row of `values` [n, m] among those with `allowed` [n, m] true."""
    pick = np.argmax(np.where(allowed, rng.random(values.shape), -1.0), axis=1)
    return values[np.arange(len(values)), pick]


def _seen_before(keys: np.ndarray, num_keys: int) -> np.ndarray:
    """[n, m] bool: whether the key at this place (-1: none) also occurs earlier in the row."""
    first = np.full((len(keys), num_keys), keys.shape[1], dtype=np.int64)
    rows, places = np.nonzero(keys >= 0)
    np.minimum.at(first, (rows, keys[rows, places]), places)
    first_place = np.take_along_axis(first, np.maximum(keys, 0), axis=1)
    return (keys >= 0) & (np.arange(keys.shape[1]) > first_place)
