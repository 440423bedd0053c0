"""Fuzzy in-context recall, one of MAD's six tasks.

    Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844.

In-context recall where keys and values are motifs of one to three different symbols, so that the model must find out by
itself where a key ends. Keys and values have alphabets of their own; "_" is padding on the left:

    input_ids     _ _ a b c X c a b Y Z X b a c Y a b c X
    scored                                              ^      (every symbol of the value of a key seen before)

In training the keys have one to three symbols; in validation and test they always have three, and the last pair repeats
an earlier key. As in the authors' code, training learns every next symbol and evaluation only the answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import numpy as np

from fla_mesa.data.synthetic.checks import check_choice, check_int
from fla_mesa.data.synthetic.registry import register
from fla_mesa.data.synthetic.task import IGNORE, Rows, Task
from fla_mesa.errors import UserError

# A map from every key motif to a value is drawn for each sequence; more motifs than this would not fit in memory.
_MAX_MOTIFS = 20_000


@register("mad-fuzzy-in-context-recall", sizes=(12_800, 1_280, 1_280))
@dataclass(frozen=True)
class FuzzyInContextRecall(Task):
    """Parameters of fuzzy recall. The last symbol, vocab_size - 1, is the padding."""

    name: ClassVar[str] = "mad-fuzzy-in-context-recall"
    paper: ClassVar[str] = "arXiv 2403.17844"

    vocab_size: int = 16
    length: int = 128
    max_key_motif: int = 3
    max_value_motif: int = 3
    train_on: str = "all"

    def __post_init__(self) -> None:
        check_int(self.name, "max_key_motif", self.max_key_motif, 1, 4)
        check_int(self.name, "max_value_motif", self.max_value_motif, 1, 4)
        check_int(self.name, "vocab_size", self.vocab_size, 1 + 2 * max(self.max_key_motif, self.max_value_motif))
        check_int(self.name, "length", self.length, 2 * (self.max_key_motif + self.max_value_motif))
        check_choice(self.name, "train_on", self.train_on, ("all", "answers"))
        for field, size in (("max_key_motif", self.max_key_motif), ("max_value_motif", self.max_value_motif)):
            motifs = (self.vocab_size // 2) ** size
            if motifs > _MAX_MOTIFS:
                raise UserError(
                    f"{self.name}: (vocab_size // 2) ** {field} must be at most {_MAX_MOTIFS}, got {motifs}"
                )

    @property
    def symbols(self) -> int:
        return self.vocab_size

    @property
    def columns(self) -> int:
        return self.length

    @property
    def padding(self) -> int:
        """The id that fills a sequence on the left."""
        return self.vocab_size - 1

    def _motifs(self, first: int, last: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """All motifs over the symbols first .. last - 1: tokens [m, longest] (-1 after the end), sizes [m]."""
        listed = [motif for size in range(1, longest + 1) for motif in permutations(range(first, last), size)]
        sizes = np.array([len(motif) for motif in listed])
        tokens = np.array([motif + (-1,) * (longest - len(motif)) for motif in listed], dtype=np.int64)
        return tokens, sizes

    def draw(self, rng: np.random.Generator, n: int, split: str) -> Rows:
        num_keys = (self.vocab_size - 1) // 2
        key_tokens, key_sizes = self._motifs(0, num_keys, self.max_key_motif)
        value_tokens, value_sizes = self._motifs(num_keys, self.vocab_size - 1, self.max_value_motif)
        value_of_key = _by_size(rng, value_sizes, (n, len(key_sizes)))

        # As many pairs as could fit if all were of the shortest kind; those past the end are dropped below.
        shortest = 2 if split == "train" else self.max_key_motif + 1
        slots = self.length // shortest
        if split == "train":
            keys = _by_size(rng, key_sizes, (n, slots))
        else:
            longest = np.flatnonzero(key_sizes == self.max_key_motif)
            keys = rng.choice(longest, size=(n, slots))
        values = np.take_along_axis(value_of_key, keys, axis=1)
        sizes = key_sizes[keys] + value_sizes[values]
        # Room is kept for the last pair whatever its size.
        room = self.length - (self.max_key_motif + self.max_value_motif)
        fits = np.cumsum(sizes, axis=1) <= room
        count = fits.sum(axis=1)  # the first pair always fits
        rows = np.arange(n)
        asked = rng.integers(0, count)
        keys = np.concatenate([keys, keys[:, :1]], axis=1)  # one slot more, for a sequence in which all fit
        keys[rows, count] = keys[rows, asked]
        keys[np.arange(slots + 1) > count[:, None]] = -1
        return self._lay_out(split, keys, value_of_key, key_tokens, value_tokens)

    def _lay_out(
        self, split: str, keys: np.ndarray, value_of_key: np.ndarray, key_tokens: np.ndarray, value_tokens: np.ndarray
    ) -> Rows:
        """Write the pairs `keys` [n, m] (-1: none) one after another, flush right."""
        n, m = keys.shape
        values = np.take_along_axis(value_of_key, np.maximum(keys, 0), axis=1)
        answer = np.broadcast_to(_repeats(keys)[:, :, None], (n, m, self.max_value_motif))
        tokens = np.concatenate([key_tokens[keys], value_tokens[values]], axis=2)  # [n, m, longest pair]
        is_answer = np.concatenate([np.zeros((n, m, self.max_key_motif), dtype=bool), answer], axis=2)
        present = (tokens >= 0) & (keys >= 0)[:, :, None]
        tokens, is_answer, present = (x.reshape(n, -1) for x in (tokens, is_answer, present))

        row, place = np.nonzero(present)
        total = present.sum(axis=1)
        column = (np.cumsum(present, axis=1) - 1)[row, place] + (self.length - total)[row]
        input_ids = np.full((n, self.length), self.padding, dtype=np.int64)
        input_ids[row, column] = tokens[row, place]
        labels = np.full((n, self.length), IGNORE, dtype=np.int64)
        if split == "train" and self.train_on == "all":
            labels[row, column] = tokens[row, place]
        else:
            labels[row, column] = np.where(is_answer[row, place], tokens[row, place], IGNORE)
        return {"input_ids": input_ids, "labels": labels}


def _by_size(rng: np.random.Generator, sizes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Motif numbers of the given shape: first a size, all equally likely, then a motif of that size."""
    start = np.searchsorted(sizes, np.arange(1, sizes[-1] + 2))  # motifs are sorted by size
    size = rng.integers(0, sizes[-1], size=shape)
    return start[size] + (rng.random(shape) * (start[size + 1] - start[size])).astype(np.int64)


def _repeats(keys: np.ndarray) -> np.ndarray:
    """[n, m] bool: whether the same key (not -1) occurs earlier in the row."""
    same = (keys[:, :, None] == keys[:, None, :]) & (keys >= 0)[:, :, None]
    return np.tril(same, k=-1).any(axis=2)
