"""Inputs like those of a trained model, their float64 reference results, and an op's errors against these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from fla_mesa.ops import naive_mesa_net_exact

POSITIONS = ("q", "k", "v", "g", "beta")  # [B, T, ...]
NAMES = (*POSITIONS, "lamb", "h_kk_init", "h_kv_init")  # in the order of the op


def draw(
    B: int, T: int, H: int, K: int, V: int, dtype: torch.dtype, device: str, *, states: int = 0, seed: int = 0
) -> dict[str, torch.Tensor | None]:
    """Inputs by name: unit keys and queries ``[B, T, H, K]`` with a common mean of a third of their norm, gates from 0.9 to 1.

    Args:
        states: How many initial states: none, B, or as many as there are packed sequences.
    """
    rng = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, device=device)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=rng, device=device)

    mean = 0.35 * normal(1, 1, H, K)
    root = normal(states, H, K, K) / K**0.5
    return {
        "q": F.normalize(normal(B, T, H, K) + mean, dim=-1).to(dtype),
        "k": F.normalize(normal(B, T, H, K) + mean, dim=-1).to(dtype),
        "v": normal(B, T, H, V).to(dtype),
        "g": (0.9 + 0.1 * uniform(B, T, H)).log(),
        "beta": uniform(B, T, H),
        "lamb": 0.25 + uniform(H, K),
        "h_kk_init": root @ root.mT if states else None,
        "h_kv_init": normal(states, H, K, V) if states else None,
    }


def definition(x: dict[str, torch.Tensor], lengths: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """o and the final states, sequence by sequence if several are packed."""
    order = ("q", "k", "v", "g", "lamb", "beta", "h_kk_init", "h_kv_init")
    if not lengths:
        return naive_mesa_net_exact(*(x[n] for n in order if n in x))
    parts, start = [], 0
    for n, length in enumerate(lengths):
        cut = {name: t[:, start : start + length] if name in POSITIONS else t for name, t in x.items()}
        cut |= {name: t[n : n + 1] for name, t in x.items() if name.startswith("h_")}
        parts.append(naive_mesa_net_exact(*(cut[name] for name in order if name in cut)))
        start += length
    o, h_kk, h_kv = zip(*parts, strict=True)
    return torch.cat(o, 1), torch.cat(h_kk), torch.cat(h_kv)


@dataclass(frozen=True)
class Truth:
    """Inputs by name, and the reference outputs and gradients in float64 for given weights of the outputs."""

    inputs: dict[str, torch.Tensor]
    lengths: tuple[int, ...]
    weights: list[torch.Tensor]
    results: dict[str, torch.Tensor]

    @classmethod
    def of(cls, drawn: dict[str, torch.Tensor | None], lengths: tuple[int, ...] = ()) -> Truth:
        inputs = {n: t for n, t in drawn.items() if t is not None}
        exact = {n: t.double().requires_grad_() for n, t in inputs.items()}
        want = definition(exact, lengths)
        rng = torch.Generator(want[0].device).manual_seed(1)
        weights = [torch.randn(o.shape, generator=rng, device=o.device, dtype=o.dtype) for o in want]
        gradients = torch.autograd.grad(want, list(exact.values()), weights)
        results = dict(zip(("o", "h_kk", "h_kv"), want, strict=True))
        results |= {f"d{n}": d for n, d in zip(exact, gradients, strict=True)}
        return cls(inputs, lengths, weights, {n: t.detach() for n, t in results.items()})

    def run(self, op: Callable[..., Any], scale: float = 1.0, **options: Any) -> dict[str, torch.Tensor]:
        """The op's outputs and gradients by name; incoming gradients are multiplied by `scale`, outgoing ones divided by it."""
        leaves = {n: t.detach().requires_grad_() for n, t in self.inputs.items()}
        if self.lengths:
            boundaries = torch.tensor([0, *self.lengths], device=self.inputs["q"].device).cumsum(0)
            options["cu_seqlens"] = boundaries
        got = op(*leaves.values(), output_final_state=True, **options)[:3]
        upstream = [(scale * w).to(o.dtype) for w, o in zip(self.weights, got, strict=True)]
        gradients = torch.autograd.grad(got, list(leaves.values()), upstream)
        results = {n: t.detach() for n, t in zip(("o", "h_kk", "h_kv"), got, strict=True)}
        return results | {f"d{n}": d.double() / scale for n, d in zip(leaves, gradients, strict=True)}

    def errors_of(self, results: dict[str, torch.Tensor]) -> dict[str, float]:
        """Relative error of each result; NaN counts as infinite, so that no comparison hides it."""

        def error(name: str) -> float:
            want = self.results[name]
            value = float((results[name].double() - want).norm() / want.norm())
            return math.inf if math.isnan(value) else value

        return {name: error(name) for name in results}

    def errors(self, op: Callable[..., Any], scale: float = 1.0, **options: Any) -> dict[str, float]:
        """Runs the op and returns its relative errors."""
        return self.errors_of(self.run(op, scale, **options))
