"""Compression, one of MAD's six tasks, in a form that a causal language model can learn.

    Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844.

`length` - 1 random symbols end with the compression symbol ">". In the paper a separate decoder must rebuild the sequence
from the model's one output there. A causal language model has no such decoder, so here the compression symbol is
repeated and the model names the symbols one after the other, none of its answers being shown to it:

    read          c a b a d > > > > >
    target                  c a b a d

Note: a recurrent model still has to carry everything in its state, but attention may look the symbols up again, and the
state may be more than one output vector. Scores are comparable between models here, not with the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fla_mesa.data.synthetic.checks import check_int
from fla_mesa.data.synthetic.registry import register
from fla_mesa.data.synthetic.task import IGNORE, Rows, Task


@register("mad-compression", sizes=(12_800, 1_280, 1_280))
@dataclass(frozen=True)
class Compression(Task):
    """Parameters of compression. vocab_size - 1 is the compression symbol; `length` counts it once."""

    name: ClassVar[str] = "mad-compression"
    paper: ClassVar[str] = "arXiv 2403.17844"

    vocab_size: int = 16
    length: int = 32

    def __post_init__(self) -> None:
        check_int(self.name, "vocab_size", self.vocab_size, 3)
        check_int(self.name, "length", self.length, 2)

    @property
    def symbols(self) -> int:
        return self.vocab_size

    @property
    def columns(self) -> int:
        return 2 * (self.length - 1) + 1

    def draw(self, rng: np.random.Generator, n: int, split: str) -> Rows:
        compress = self.vocab_size - 1
        content = rng.integers(0, compress, size=(n, self.length - 1))
        input_ids = np.full((n, self.columns), compress, dtype=np.int64)
        input_ids[:, : self.length - 1] = content
        labels = np.full((n, self.columns), IGNORE, dtype=np.int64)
        labels[:, self.length :] = content
        return {"input_ids": input_ids, "labels": labels}
