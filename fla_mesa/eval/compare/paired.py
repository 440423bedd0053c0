"""Differences between two models over pairs of runs: one pair a seed, which trained on the same data in the same order."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

# 0.975 quantiles of Student's t by degrees of freedom, from 1; further ones by the expansion below, which is right to 2e-4 there.
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_Z = statistics.NormalDist().inv_cdf(0.975)


def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t (Cornish and Fisher's expansion about the normal's beyond 10 degrees of freedom)."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    first = (_Z**3 + _Z) / 4
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    third = (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384
    return _Z + first / freedom + second / freedom**2 + third / freedom**3


@dataclass(frozen=True)
class Difference:
    """A mean difference and the half width of its 95 % interval: t times the standard error over pairs; None for a single pair."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
        """Of values by seed; None if there is no seed that both have."""
        pairs = [value - baseline[seed] for seed, value in values.items() if seed in baseline]
        if len(pairs) < 2:
            return cls(pairs[0], None) if pairs else None
        error = statistics.stdev(pairs) / math.sqrt(len(pairs))
        return cls(statistics.fmean(pairs), t_quantile(len(pairs) - 1) * error)
