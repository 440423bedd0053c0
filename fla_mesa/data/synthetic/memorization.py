"""Memorization, one of MAD's six tasks.

    Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844.

One map from keys to values for the whole task, so that the answers must be kept in the weights: nothing in the sequence
tells them. After each key comes the insert symbol "?", at which the value of the key is asked for:

    read          k ? c ? a ? k ?
    target          Q   M   T   Q       fixed map: a -> T, c -> M, k -> Q, ...

The arrays have one column more than `length`: the target of the last insert symbol lies there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fla_mesa.data.synthetic.checks import check_int
from fla_mesa.data.synthetic.registry import register
from fla_mesa.data.synthetic.task import IGNORE, Rows, Task
from fla_mesa.errors import UserError


@register("mad-memorization", sizes=(256, 1_280, 1_280))
@dataclass(frozen=True)
class Memorization(Task):
    """Parameters of memorization. The map depends only on `map_seed`, so all splits share it.

    Keys are 0 .. (vocab_size - 1) // 2 - 1, values the rest, vocab_size - 1 the insert symbol.
    """

    name: ClassVar[str] = "mad-memorization"
    paper: ClassVar[str] = "arXiv 2403.17844"

    vocab_size: int = 256
    length: int = 32
    map_seed: int = 12345

    def __post_init__(self) -> None:
        check_int(self.name, "vocab_size", self.vocab_size, 3)
        check_int(self.name, "length", self.length, 2)
        if self.length % 2:
            raise UserError(f"{self.name}: length must be even, got {self.length!r}")
        check_int(self.name, "map_seed", self.map_seed, 0)

    @property
    def symbols(self) -> int:
        return self.vocab_size

    @property
    def columns(self) -> int:
        return self.length + 1

    @property
    def value_of_key(self) -> np.ndarray:
        """[keys] int64: the map to learn; no two keys have the same value."""
        content = self.vocab_size - 1
        values = np.random.default_rng(self.map_seed).permutation(np.arange(content // 2, content))
        return values[: content // 2]

    def draw(self, rng: np.random.Generator, n: int, split: str) -> Rows:
        value_of_key, insert = self.value_of_key, self.vocab_size - 1
        keys = rng.integers(0, len(value_of_key), size=(n, self.length // 2))
        input_ids = np.full((n, self.columns), insert, dtype=np.int64)
        input_ids[:, 0:-1:2] = keys
        labels = np.full((n, self.columns), IGNORE, dtype=np.int64)
        labels[:, 2::2] = value_of_key[keys]
        return {"input_ids": input_ids, "labels": labels}
