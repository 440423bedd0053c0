"""One table of inputs for every implementation of the op, with reference results in float64.

A back end is tested by running the table: outputs, final states and all eight gradients against autograd through
``naive_mesa_net_exact``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from fla_mesa.ops import naive_mesa_net_exact

INPUTS = ("q", "k", "v", "g", "beta", "lamb", "h_kk_init", "h_kv_init")
OUTPUTS = ("o", "h_kk", "h_kv")


@dataclass(frozen=True)
class Case:
    """How to draw inputs.

    Attributes:
        B, T, H, K, V: Sizes.
        gates: Range of the forget gate gamma.
        mean: Weight of a mean that all keys (and all queries) of a head share; it makes the system ill-conditioned.
        spread: Standard deviation of the parameter behind lamb; 0 for lamb = 1 everywhere.
        lengths: Lengths of packed sequences (then B = 1 and T is their sum), or None.
        initial: Whether there are initial states.
    """

    B: int = 1
    T: int = 300
    H: int = 2
    K: int = 64
    V: int = 64
    gates: tuple[float, float] = (0.9, 1.0)
    mean: float = 0.0
    spread: float = 0.0
    lengths: tuple[int, ...] | None = None
    initial: bool = True

    @property
    def sequences(self) -> int:
        """Number of states."""
        return self.B if self.lengths is None else len(self.lengths)

    @property
    def cu_seqlens(self) -> torch.Tensor | None:
        """Boundaries of the packed sequences."""
        return None if self.lengths is None else torch.tensor([0, *self.lengths]).cumsum(0)


# The cases that the project's accuracy is stated for: K = V = 64, T = 300.
STATED = {
    "gates 0.9 to 1": Case(),
    "gates 0 to 1": Case(gates=(0.0, 1.0)),
    "gates 0.9 to 1, common mean": Case(mean=3.0),
    "gates 0 to 1, common mean": Case(gates=(0.0, 1.0), mean=3.0),
    "gates 1, common mean, spread lamb": Case(gates=(1.0, 1.0), mean=1.0, spread=1.0),
}
# Small ones for every kind of shape.
SMALL = {
    "one position": Case(B=2, T=1, K=16, V=16),
    "shorter than a tile": Case(B=2, T=9, H=3, K=16, V=16),
    "exactly two tiles": Case(T=128, K=16, V=32, spread=1.0),
    "one more than a tile": Case(T=65, K=32, V=16, spread=1.0),
    "no initial states": Case(B=2, T=100, K=16, V=16, initial=False),
    "packed": Case(T=151, K=16, V=32, lengths=(1, 64, 20, 66), spread=1.0),
    "packed, no initial states": Case(T=70, K=16, V=16, lengths=(70,), initial=False),
    "odd sizes": Case(T=70, H=1, K=24, V=40, spread=1.0),
}


def draw(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor | None]:
    """Inputs by name, as leaves that require gradients; initial states are at least float32."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    def keys() -> torch.Tensor:
        return F.normalize(normal(case.B, case.T, case.H, case.K) + case.mean * normal(case.H, case.K), dim=-1)

    low, high = case.gates
    positions, states = (case.B, case.T, case.H), (case.sequences, case.H, case.K)
    root = normal(*states, case.K) / case.K**0.5
    x = {
        "q": keys(),
        "k": keys(),
        "v": normal(*positions, case.V),
        "g": (low + (high - low) * torch.rand(positions, generator=rng, dtype=torch.float64)).clamp(min=1e-6).log(),
        "beta": torch.rand(positions, generator=rng, dtype=torch.float64),
        "lamb": 0.25 + F.softplus(case.spread * normal(case.H, case.K) + 0.1175)
        if case.spread
        else torch.ones(case.H, case.K),
        "h_kk_init": root @ root.mT if case.initial else None,
        "h_kv_init": normal(*states, case.V) if case.initial else None,
    }

    def leaf(name: str, value: torch.Tensor | None) -> torch.Tensor | None:
        if value is None:
            return None
        return value.to(torch.promote_types(dtype, torch.float32) if name.startswith("h_") else dtype).requires_grad_()

    return {name: leaf(name, value) for name, value in x.items()}


def run_truth(x: dict[str, torch.Tensor | None], lengths: tuple[int, ...] | None) -> tuple[torch.Tensor, ...]:
    """``naive_mesa_net_exact`` on inputs by name, sequence by sequence where they are packed."""

    def one(x: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        return naive_mesa_net_exact(
            *(x[name] for name in ("q", "k", "v", "g", "lamb", "beta", "h_kk_init", "h_kv_init"))
        )

    if lengths is None:
        return one(x)
    parts, start = [], 0
    for n, length in enumerate(lengths):
        place = {name: slice(start, start + length) for name in ("q", "k", "v", "g", "beta")}
        part = {
            name: value[:, place[name]] if name in place else value for name, value in x.items() if value is not None
        }
        parts.append(
            one({name: part[name][n : n + 1] if name.startswith("h_") else part[name] for name in part} | _missing(x))
        )
        start += length
    o, h_kk, h_kv = zip(*parts, strict=True)
    return torch.cat(o, 1), torch.cat(h_kk), torch.cat(h_kv)


def _missing(x: dict[str, torch.Tensor | None]) -> dict[str, None]:
    return {name: None for name, value in x.items() if value is None}


def paper_solve(h: torch.Tensor, lamb: torch.Tensor, q: torch.Tensor, steps: int) -> torch.Tensor:
    """This many steps of algorithm 1 of arXiv 2506.05233 for ``(h + diag(lamb)) x = q``, ``h [..., K, K]``, ``q [..., K]``."""
    a = h + torch.diag_embed(lamb)

    def times(x: torch.Tensor) -> torch.Tensor:
        return (a @ x.unsqueeze(-1)).squeeze(-1)

    x = q / torch.diagonal(a, dim1=-2, dim2=-1)
    r = p = q - times(x)
    for _ in range(steps):
        y, rr = times(p), r.square().sum(-1, keepdim=True)
        step = rr / (p * y).sum(-1, keepdim=True)
        x, r = x + step * p, r - step * y
        p = r + r.square().sum(-1, keepdim=True) / rr * p
    return x


def upstream(case: Case, seed: int = 1) -> tuple[torch.Tensor, ...]:
    """Gradients of o, h_kk and h_kv, of size 1, float64."""
    rng = torch.Generator().manual_seed(seed)
    states = (case.sequences, case.H, case.K)
    shapes = ((case.B, case.T, case.H, case.V), (*states, case.K), (*states, case.V))
    return tuple(torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in shapes)


@functools.cache
def truth(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Outputs and gradients (by name, "d" before an input's) in float64 for the inputs as ``dtype`` rounds them."""
    x = {n: None if v is None else v.detach().double().requires_grad_() for n, v in draw(case, dtype).items()}
    outputs = run_truth(x, case.lengths)
    present = {name: value for name in INPUTS if (value := x[name]) is not None}
    gradients = torch.autograd.grad(outputs, [*present.values()], upstream(case))
    return dict(zip(OUTPUTS, (o.detach() for o in outputs), strict=True)) | {
        f"d{name}": g for name, g in zip(present, gradients, strict=True)
    }


def run(op, case: Case, dtype: torch.dtype = torch.float32, scale: float = 1.0, **options) -> dict[str, torch.Tensor]:
    """The same with ``op`` (``chunk_mesa_net`` or similar), for upstream gradients times ``scale``; gradients are divided by it again."""
    x = draw(case, dtype)
    outputs = op(*(x[name] for name in INPUTS), output_final_state=True, cu_seqlens=case.cu_seqlens, **options)[:3]
    present = {name: value for name in INPUTS if (value := x[name]) is not None}
    weights = [(scale * w).to(o.dtype) for w, o in zip(upstream(case), outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, [*present.values()], weights)
    return dict(zip(OUTPUTS, (o.detach() for o in outputs), strict=True)) | {
        f"d{name}": g.double() / scale for name, g in zip(present, gradients, strict=True)
    }


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """``||got - want|| / ||want||`` over the whole tensor."""
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm())


def errors(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> dict[str, float]:
    """The relative error of each result in ``want``."""
    return {name: relative_error(got[name], want[name]) for name in want}
