"""Time and memory of the ops on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Time:
    """Milliseconds."""

    median: float
    p20: float
    p80: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.p20:.2f}-{self.p80:.2f})"


def measure(f: Callable[[], Any]) -> Time:
    """Times a call repeatedly for half a second, flushing caches in between."""
    from triton.testing import do_bench

    found: Any = do_bench(f, warmup=100, rep=400, quantiles=[0.5, 0.2, 0.8])
    return Time(*found)


def with_backward(f: Callable[..., Any], leaves: list[torch.Tensor], do: torch.Tensor) -> Callable[[], Any]:
    """A call of f followed by its backward pass."""
    return lambda: torch.autograd.grad(f(*leaves)[0], leaves, do)


def leaves_of(x: dict[str, Any], *names: str) -> list[torch.Tensor]:
    """Inputs that require gradients."""
    return [x[n].detach().requires_grad_() for n in names]


def fla_ops(x: dict[str, Any]) -> dict[str, tuple[Callable[..., Any], list[torch.Tensor]]]:
    """fla's op, gated delta rule and GLA, each with the leaves it uses."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.gla import chunk_gla
    from fla.ops.mesa_net import chunk_mesa_net

    by_channel = x["g"].unsqueeze(-1).expand_as(x["k"]).contiguous()  # gla gates every channel
    return {
        "fla mesa_net, 30 steps": (
            functools.partial(chunk_mesa_net, max_CG_iteration=30),
            leaves_of(x, "q", "k", "v", "g", "beta", "lamb"),
        ),
        "fla gated_delta_rule": (chunk_gated_delta_rule, leaves_of(x, "q", "k", "v", "g", "beta")),
        "fla gla": (chunk_gla, [*leaves_of(x, "q", "k", "v"), by_channel.requires_grad_()]),
    }


def peak(f: Callable[[], Any]) -> float:
    """Peak memory of a call in bytes, beyond what was allocated before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    f()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def timed(f: Callable[..., Any], leaves: list[torch.Tensor], do: torch.Tensor) -> dict[str, float]:
    """Milliseconds of the forward pass and of both passes, and peak GiB of both."""
    both = with_backward(f, leaves, do)
    forward = measure(functools.partial(f, *[t.detach() for t in leaves]))
    return {
        "forward, ms": forward.median,
        "forward + backward, ms": measure(both).median,
        "memory, GiB": peak(both) / 2**30,
    }
