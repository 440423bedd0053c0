"""Selective copying, one of MAD's six tasks.

    Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844.

num_copied symbols lie among blanks "_"; after the copy symbol ">" the model fills the blanks with them, in order:

    read          _ c _ _ a _ b > _ _ _
    target                        c a b

The arrays have one column more than `length`: the target of the last blank lies there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fla_mesa.data.synthetic.checks import check_int
from fla_mesa.data.synthetic.registry import register
from fla_mesa.data.synthetic.task import IGNORE, Rows, Task


@register("mad-selective-copying", sizes=(12_800, 1_280, 1_280))
@dataclass(frozen=True)
class SelectiveCopying(Task):
    """Parameters of selective copying. vocab_size - 1 is the copy symbol, vocab_size - 2 the blank."""

    name: ClassVar[str] = "mad-selective-copying"
    paper: ClassVar[str] = "arXiv 2403.17844"

    vocab_size: int = 16
    length: int = 256
    num_copied: int = 16

    def __post_init__(self) -> None:
        check_int(self.name, "vocab_size", self.vocab_size, 4)
        check_int(self.name, "num_copied", self.num_copied, 1)
        check_int(self.name, "length", self.length, 2 * self.num_copied + 2)

    @property
    def symbols(self) -> int:
        return self.vocab_size

    @property
    def columns(self) -> int:
        return self.length + 1

    def draw(self, rng: np.random.Generator, n: int, split: str) -> Rows:
        copy, blank, m = self.vocab_size - 1, self.vocab_size - 2, self.num_copied
        content = rng.integers(0, blank, size=(n, m))
        # Every blank of the first part goes before a random one of the symbols, so the last symbol ends that part.
        blanks = self.length - 2 * m - 1
        before = rng.multinomial(blanks, np.full(m, 1 / m), size=n)
        places = np.arange(m) + np.cumsum(before, axis=1)
        input_ids = np.full((n, self.columns), blank, dtype=np.int64)
        np.put_along_axis(input_ids, places, content, axis=1)
        input_ids[:, self.length - m - 1] = copy
        labels = np.full((n, self.columns), IGNORE, dtype=np.int64)
        labels[:, self.columns - m :] = content
        return {"input_ids": input_ids, "labels": labels}
