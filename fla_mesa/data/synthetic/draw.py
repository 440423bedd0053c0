"""Random draws for many sequences at once."""

from __future__ import annotations

import numpy as np


def choose_distinct(rng: np.random.Generator, rows: int, population: int, k: int) -> np.ndarray:
    """[rows, k] int64: each row holds k different numbers of range(population), in random order.

    Floyd's sampling, a column at a time for all rows: exact, and its cost does not grow with the population.

    Raises:
        ValueError: k is larger than the population.
    """
    if k > population:
        raise ValueError(f"k must be at most the population {population}, got {k}")
    chosen = np.empty((rows, k), dtype=np.int64)
    for i, top in enumerate(range(population - k, population)):
        candidate = rng.integers(0, top + 1, size=rows)
        taken = (chosen[:, :i] == candidate[:, None]).any(axis=1)
        chosen[:, i] = np.where(taken, top, candidate)
    # The set is uniform but its order is not (a late column is more often large), hence the shuffle.
    return rng.permuted(chosen, axis=1)


def choose_weighted(rng: np.random.Generator, rows: int, weights: np.ndarray, k: int) -> np.ndarray:
    """[rows, k] int64: k different indices of `weights` per row, drawn one after another in proportion to the weights.

    Exponential clocks: the k indices whose clocks E / weight ring first, in that order, are such a draw.

    Raises:
        ValueError: k is larger than the number of weights.
    """
    if k > len(weights):
        raise ValueError(f"k must be at most the number of weights {len(weights)}, got {k}")
    clocks = rng.standard_exponential((rows, len(weights))) / weights
    return np.argsort(clocks, axis=1)[:, :k]


def _finalise(h: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: every input bit affects every output bit."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def hash_rows(rows: np.ndarray) -> np.ndarray:
    """[n] uint64: a hash of each row of an integer array [n, L], the same on every machine and in every run."""
    columns = np.arange(1, rows.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    # Every column has its own odd multiplier; the sum wraps around in 64 bits.
    return _finalise((rows.astype(np.uint64) + np.uint64(1)) @ (_finalise(columns) | np.uint64(1)))
