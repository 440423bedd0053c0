"""In-context linear regression with noise and drift: a source of vectors instead of tokens, and its best possible predictor.

    after arXiv 2212.07677 (von Oswald et al., 2023) and arXiv 2208.01066 (Garg et al., 2022), with a drift as in adaptive filtering

Every sequence has weights of its own, w_t in R^d, which drift: a share `drift` of their variance is renewed at each position,

    w_1 ~ N(0, I),   w_{t+1} = sqrt(1 - drift) w_t + sqrt(drift) e_t,   e_t ~ N(0, I)
    x_t uniform on the sphere of radius sqrt(d),   y_t = <w_t, x_t> / sqrt(d) + noise n_t,   n_t ~ N(0, 1)

and the model reads each x_t beside the last answer, and names the next:

    position      1            2             3             ...
    features   (x_1, 0)   (x_2, y_1)    (x_3, y_2)                [T, d + 1]
    target       y_1          y_2           y_3                   [T]

Inputs lie on a sphere, so that a layer that normalises its keys loses nothing. The signal has variance 1, the noise noise².

The least expected squared error has a closed form. Without drift it is ridge regression on the past, with u_t = x_t / sqrt(d),

    y*_t = u_t^T (sum_{s<t} u_s u_s^T + noise² I)^-1 sum_{s<t} y_s u_s

and with drift the Kalman filter, of which this is the case drift = 0. A Mesa layer computes such a solve with a weight a step, gamma, that
forgets the past exponentially; what else it takes is a convolution that brings x_{t-1} and y_{t-1} together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset

from fla_mesa.data.request import DataRequest, Splits
from fla_mesa.data.synthetic.checks import check_int
from fla_mesa.data.synthetic.suite import parse_settings
from fla_mesa.data.synthetic.task import SPLITS
from fla_mesa.errors import UserError

NAME = "regression"


@dataclass(frozen=True)
class Regression:
    """Parameters of the task.

    Attributes:
        dimension: d.
        length: T.
        noise: Standard deviation of the noise.
        drift: Share of the weights' variance that is renewed at each position, in [0, 1).
        train, validation, test: Sequences.
        seed: Draws them.
    """

    dimension: int = 8
    length: int = 64
    noise: float = 0.5
    drift: float = 0.0
    train: int = 100_000
    validation: int = 512
    test: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in (("dimension", 1), ("length", 2), ("seed", 0), *((split, 1) for split in SPLITS)):
            check_int(NAME, field, getattr(self, field), least)
        for field, holds, allowed in (
            ("noise", lambda value: 0 < value < math.inf, "> 0"),
            ("drift", lambda value: 0 <= value < 1, "in [0, 1)"),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
                raise UserError(f"{NAME}: {field} must be a number {allowed}, got {value!r}")

    @classmethod
    def parse(cls, spec: str) -> Regression:
        """Parameters from a spec such as ``regression:dimension=4,drift=0.02``.

        Raises:
            UserError: A setting is unknown or its value not allowed.
        """
        given = parse_settings(NAME, spec.partition(":")[2])
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise UserError(f"{NAME}: unknown setting {name!r}; allowed: {', '.join(known)}")
        return cls(**given)

    def sequence(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sequence of a split: x, float64 ``[T, d]``, and y, float64 ``[T]``; no two share a random number."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        T, d = self.length, self.dimension
        x = rng.standard_normal((T, d))
        x *= math.sqrt(d) / np.linalg.norm(x, axis=1, keepdims=True)
        steps = rng.standard_normal((T, d))
        if self.drift:
            w = np.empty((T, d))
            w[0] = steps[0]
            for t in range(1, T):
                w[t] = math.sqrt(1 - self.drift) * w[t - 1] + math.sqrt(self.drift) * steps[t]
        else:
            w = np.broadcast_to(steps[0], (T, d))
        return x, (w * x).sum(1) / math.sqrt(d) + self.noise * rng.standard_normal(T)

    def split(self, name: str) -> Sequences:
        """The sequences of a split."""
        return Sequences(self, name)

    def optimum(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The expectation of each y_t given x_t and all before: float64 ``[N, T]`` of ``[N, T, d]`` and ``[N, T]``.

        The Kalman filter: m and P are the mean and covariance of w_t given what came before t.
        """
        N, T, d = x.shape
        u = x / math.sqrt(d)
        m, P = np.zeros((N, d)), np.broadcast_to(np.eye(d), (N, d, d)).copy()
        expected = np.empty((N, T))
        for t in range(T):
            if t > 0:
                m *= math.sqrt(1 - self.drift)
                P = (1 - self.drift) * P + self.drift * np.eye(d)
            Pu = np.einsum("nij,nj->ni", P, u[:, t])
            expected[:, t] = np.einsum("ni,ni->n", m, u[:, t])
            variance = np.einsum("ni,ni->n", u[:, t], Pu) + self.noise**2  # of y_t about what is expected
            m += Pu * ((y[:, t] - expected[:, t]) / variance)[:, None]
            P = P - Pu[:, :, None] * Pu[:, None, :] / variance[:, None, None]
        return expected


class Sequences(Dataset):
    """A split, generated row by row on demand: ``{"features": float32 [T, d + 1], "labels": float32 [T]}``."""

    def __init__(self, task: Regression, name: str):
        self.task, self.name = task, name

    def __len__(self) -> int:
        return getattr(self.task, self.name)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        x, y = self.task.sequence(self.name, index)
        return {"features": torch.from_numpy(features(x, y)).float(), "labels": torch.from_numpy(y).float()}

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """All sequences in float64: "x" ``[N, T, d]``, "y" ``[N, T]``, and "optimum" ``[N, T]``, the best predictions."""
        x, y = (
            np.stack(part) for part in zip(*(self.task.sequence(self.name, i) for i in range(len(self))), strict=True)
        )
        return {"x": x, "y": y, "optimum": self.task.optimum(x, y)}


def features(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The model's input: ``[..., T, d + 1]``, each x with the previous y."""
    before = np.concatenate([np.zeros_like(y[..., :1]), y[..., :-1]], axis=-1)
    return np.concatenate([x, before[..., None]], axis=-1)


def load_regression(request: DataRequest) -> Splits:
    """The loader behind ``--data regression`` and ``--data regression:settings``. Raises UserError for a wrong setting."""
    request.reject("validation", "config", "text_column", "tokenizer", "seq_len")
    task = Regression.parse(request.spec)
    noise, drift = task.noise, task.drift
    request.say(
        f"data: {request.spec}: {task.train:,} sequences to train on, {task.validation:,} to validate with, of {task.length} pairs in "
        f"dimension {task.dimension}; noise {noise:g}, drift {drift:g}"
    )
    return Splits(
        train=task.split("train"),
        validation=task.split("validation"),
        vocab_size=1,
        seq_len=task.length,
        sha256=hashlib.sha256(repr(task).encode()).hexdigest(),
        features=task.dimension + 1,
        facts={NAME: request.spec},
    )
