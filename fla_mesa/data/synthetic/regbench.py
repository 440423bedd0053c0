"""RegBench: learning a random regular language in context.

    Akyürek et al., "In-Context Language Learning: Architectures and Algorithms", arXiv 2401.12973.

Each sequence has an automaton of its own: 4 to 12 states, an alphabet of 4 to 18 of the 18 symbols, one to three edges
out of each state to different other states, with different symbols, all equally likely. 10 to 19 strings of 1 to 49
symbols are walks from its start state:

    input_ids     c a c a d | c d b | c a d b ...       "|" is the separator, "." pads on the right
    scored          ^ ^ ^ ^   ^ ^ ^   ^ ^ ^ ^           (every symbol but the first; neither "|" nor ".")

A prediction is right if the automaton allows it, whether or not the walk took it. No language of one split is in
another: a split is chosen by the language, not by the strings.

The bounds are those of the authors' code, whose upper ends of ranges are exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fla_mesa.data.synthetic.checks import check_int, check_range
from fla_mesa.data.synthetic.draw import choose_distinct, hash_rows
from fla_mesa.data.synthetic.registry import register
from fla_mesa.data.synthetic.task import IGNORE, Rows, Task

# `allowed` holds a bit for each symbol in an int64.
_MAX_SYMBOLS = 62


@register("regbench", sizes=(5_000, 250, 250))
@dataclass(frozen=True)
class RegBench(Task):
    """Parameters of RegBench; a pair is (first, last), both included.

    Ids 0 .. num_symbols - 1 are the symbols, num_symbols the separator, num_symbols + 1 the padding.
    """

    name: ClassVar[str] = "regbench"
    paper: ClassVar[str] = "arXiv 2401.12973"

    num_symbols: int = 18
    states: tuple[int, int] = (4, 12)
    alphabet: tuple[int, int] = (4, 18)
    edges: tuple[int, int] = (1, 3)
    strings: tuple[int, int] = (10, 19)
    string_length: tuple[int, int] = (1, 49)

    def __post_init__(self) -> None:
        check_int(self.name, "num_symbols", self.num_symbols, 1, _MAX_SYMBOLS)
        check_range(self.name, "alphabet", self.alphabet, 1, self.num_symbols)
        check_range(self.name, "states", self.states, 2)
        most = min(self.alphabet[0], self.states[0] - 1)
        check_range(self.name, "edges", self.edges, 1, most)
        check_range(self.name, "strings", self.strings, 1)
        check_range(self.name, "string_length", self.string_length, 1)

    @property
    def symbols(self) -> int:
        return self.num_symbols + 2

    @property
    def columns(self) -> int:
        return self.strings[1] * (self.string_length[1] + 1) - 1

    def _automata(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """symbol [n, S, E] (-1: no such edge) and target [n, S, E] of every edge; state 0 is the start."""
        most_states, most_edges = self.states[1], self.edges[1]
        num_states = rng.integers(self.states[0], self.states[1] + 1, size=n)
        num_symbols = rng.integers(self.alphabet[0], self.alphabet[1] + 1, size=n)
        letters = choose_distinct(rng, n, self.num_symbols, self.num_symbols)  # the first num_symbols of each row
        shape = (n, most_states, most_edges)
        letter = _choose_below(rng, shape, np.broadcast_to(num_symbols[:, None], shape[:2]))
        symbol = np.take_along_axis(letters, letter.reshape(n, -1), axis=1).reshape(shape)
        # Targets are drawn among the other states: skipping the state itself leaves no loop on one state.
        state = np.arange(most_states)[None, :, None]
        target = _choose_below(rng, shape, np.broadcast_to(num_states[:, None] - 1, shape[:2]))
        target = target + (target >= state)
        out_degree = rng.integers(self.edges[0], self.edges[1] + 1, size=shape[:2])
        exists = (np.arange(most_edges) < out_degree[:, :, None]) & (state < num_states[:, None, None])
        return np.where(exists, symbol, -1), np.where(exists, target, 0)

    def draw(self, rng: np.random.Generator, n: int, split: str) -> Rows:
        symbol, target = self._automata(rng, n)
        out_degree = (symbol >= 0).sum(axis=2)  # [n, S]
        allowed_from = np.where(symbol >= 0, np.left_shift(np.int64(1), np.maximum(symbol, 0)), 0).sum(axis=2)

        num_strings = rng.integers(self.strings[0], self.strings[1] + 1, size=n)
        lengths = rng.integers(self.string_length[0], self.string_length[1] + 1, size=(n, self.strings[1]))
        # Where each string's separator lies: a string takes its length and one column more.
        ends = np.cumsum(lengths + 1, axis=1) - 1
        separator_at = np.zeros((n, self.columns + 1), dtype=bool)
        np.put_along_axis(separator_at, ends, True, axis=1)
        last = np.take_along_axis(ends, num_strings[:, None] - 1, axis=1)[:, 0]  # first column after the last string

        separator, padding = self.num_symbols, self.num_symbols + 1
        input_ids = np.full((n, self.columns), padding, dtype=np.int64)
        allowed = np.zeros((n, self.columns), dtype=np.int64)
        state, rows = np.zeros(n, dtype=np.int64), np.arange(n)
        for t in range(self.columns):
            edge = (rng.random(n) * out_degree[rows, state]).astype(np.int64)
            walk, inside = ~separator_at[:, t], t < last
            input_ids[:, t] = np.where(inside, np.where(walk, symbol[rows, state, edge], separator), padding)
            allowed[:, t] = np.where(inside & walk, allowed_from[rows, state], 0)
            state = np.where(walk, target[rows, state, edge], 0)
        labels = np.where(allowed != 0, input_ids, IGNORE)
        return {
            "input_ids": input_ids,
            "labels": labels,
            "allowed": allowed,
            "language": self._language(symbol, target),
        }

    def _language(self, symbol: np.ndarray, target: np.ndarray) -> np.ndarray:
        """[n] uint64: equal for automata that generate the same strings, different otherwise (except for collisions).

        A state's hash after r rounds tells what can be walked from it in r steps. Of two automata of S states each, every
        round tells at least one more of their 2 S states apart or none ever will: 2 S - 1 rounds do, so that the start
        state's hash stands for the minimal automaton.
        """
        n, most_states, most_edges = symbol.shape
        view = np.zeros((n, most_states), dtype=np.uint64)
        order = np.argsort(symbol, axis=2)  # an edge list, not a set: sorted by symbol it has one form
        symbol = np.take_along_axis(symbol, order, axis=2)
        target = np.take_along_axis(target, order, axis=2)
        exists = (symbol >= 0).reshape(-1, most_edges)
        for _ in range(2 * most_states - 1):
            seen = np.take_along_axis(view, target.reshape(n, -1), axis=1).reshape(-1, most_edges)
            edges = np.concatenate(
                [symbol.reshape(-1, most_edges).astype(np.uint64), np.where(exists, seen, 0)], axis=1
            )
            view = hash_rows(edges).reshape(n, most_states)
        return view[:, 0]

    def identity(self, rows: Rows) -> np.ndarray:
        return rows["language"]

    def generate(self, split: str, n: int, seed: int = 0) -> Rows:
        """As Task.generate; "allowed" int64 [n, L] has bit s of column t set if symbol s may follow at t."""
        rows = super().generate(split, n, seed)
        return {key: rows[key] for key in ("input_ids", "labels", "allowed")}

    def correct(self, predictions: np.ndarray, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        _, scored = super().correct(predictions, rows)
        guess = np.asarray(predictions)[:, :-1]
        is_symbol = (guess >= 0) & (guess < self.num_symbols)
        bit = np.left_shift(np.int64(1), np.where(is_symbol, guess, 0))
        return scored & is_symbol & ((np.asarray(rows["allowed"])[:, 1:] & bit) != 0), scored


def _choose_below(rng: np.random.Generator, shape: tuple[int, int, int], bound: np.ndarray) -> np.ndarray:
    """[n, S, E] int64: E different numbers below bound [n, S] for each of the n x S cells."""
    top = int(bound.max())
    keys = rng.random((*shape[:2], top))
    keys[np.arange(top) >= bound[:, :, None]] = 2.0  # out of bounds: sorted last
    return np.argsort(keys, axis=2)[:, :, : shape[2]]
