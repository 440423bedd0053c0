"""Multi-query associative recall (MQAR).

    Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models", arXiv 2312.04927.

num_pairs keys with their values come first; later, at random distances, every key comes back once and the model must
name its value at once. With the keys 1..3 and the values 4..7, "." standing for a random symbol:

    position      0  1  2  3  4  5  6  7  8  9
    input_ids     2  6  3  4  .  .  3  .  2  .
    next symbol                    [4]   [6]         <- the only two that are scored

The gap between the pairs and the query follows a power law, p(gap) ~ gap^(a - 1), as repeated bigrams do in text.
The symbol that follows a query in the input is not the answer, so nothing can be learnt by copying.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fla_mesa.data.synthetic.checks import check_bool, check_int
from fla_mesa.data.synthetic.draw import choose_distinct, choose_weighted
from fla_mesa.data.synthetic.registry import Segments, register
from fla_mesa.data.synthetic.task import IGNORE, Rows, Task
from fla_mesa.errors import UserError


def _mixture_of_the_paper() -> tuple[Segments, Segments, Segments]:
    """Zoology's settings as (length, pairs, sequences); validation is a small draw from the training settings."""
    train = [(64, 4, 100_000), (128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000), (256, 64, 20_000)]
    test = [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
    return (
        tuple((MQAR(length=length, num_pairs=pairs), n) for length, pairs, n in train),
        tuple((MQAR(length=length, num_pairs=pairs), 200) for length, pairs, _ in train),
        tuple((MQAR(length=length, num_pairs=pairs), 1000) for length, pairs in test),
    )


@register("mqar", sizes=(100_000, 1_000, 1_000), mixture=_mixture_of_the_paper)
@dataclass(frozen=True)
class MQAR(Task):
    """Parameters of MQAR; the defaults are the easiest setting of the paper.

    Symbol 0 is unused by keys and values, keys are 1 .. vocab_size // 2 - 1, values vocab_size // 2 .. vocab_size - 1.
    """

    name: ClassVar[str] = "mqar"
    paper: ClassVar[str] = "arXiv 2312.04927"

    vocab_size: int = 8192
    length: int = 64
    num_pairs: int = 4
    power_a: float = 0.01
    random_filler: bool = True

    def __post_init__(self) -> None:
        check_int(self.name, "num_pairs", self.num_pairs, 1)
        check_int(self.name, "length", self.length, 4 * self.num_pairs)
        if self.length % 2:
            raise UserError(f"mqar: length must be even, got {self.length!r}")
        check_int(self.name, "vocab_size", self.vocab_size, 2 * self.num_pairs + 2)
        if isinstance(self.power_a, bool) or not isinstance(self.power_a, int | float) or self.power_a <= 0:
            raise UserError(f"mqar: power_a must be a number > 0, got {self.power_a!r}")
        check_bool(self.name, "random_filler", self.random_filler)

    @property
    def setting(self) -> str:
        return f"{self.length}x{self.num_pairs}"

    @property
    def symbols(self) -> int:
        return self.vocab_size

    @property
    def columns(self) -> int:
        return self.length

    @property
    def gap_weights(self) -> np.ndarray:
        """[slots] float64: unnormalized probability that a query is in each slot (two positions) after the pairs."""
        slots = (self.length - 2 * self.num_pairs) // 2
        return np.arange(1, slots + 1, dtype=np.float64) ** (self.power_a - 1)

    def draw(self, rng: np.random.Generator, n: int, split: str) -> Rows:
        half, context = self.vocab_size // 2, 2 * self.num_pairs
        keys = 1 + choose_distinct(rng, n, half - 1, self.num_pairs)
        values = half + choose_distinct(rng, n, self.vocab_size - half, self.num_pairs)
        query = context + 2 * choose_weighted(rng, n, self.gap_weights, self.num_pairs)  # [n, num_pairs] positions

        shape = (n, self.length)
        input_ids = rng.integers(0, self.vocab_size, size=shape) if self.random_filler else np.zeros(shape, np.int64)
        input_ids[:, 0:context:2] = keys
        input_ids[:, 1:context:2] = values
        np.put_along_axis(input_ids, query, keys, axis=1)
        labels = np.full(shape, IGNORE, dtype=np.int64)
        np.put_along_axis(labels, query + 1, values, axis=1)
        return {"input_ids": input_ids, "labels": labels}
