"""Hawk's token mixer, with the real-gated linear recurrent unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from fla.modules import ShortConvolution
from fla.ops.hgrn import fused_recurrent_hgrn

from fla_mesa.layers.initialization import fill
from fla_mesa.layers.matched.registry import rule
from fla_mesa.layers.recurrent import Call, RecurrentMixer, States

# How strongly the gate r moves the decay a = exp(-C softplus(Lambda) r), and where a^(1 / r) starts.
C = 8.0
DECAYS = (0.9, 0.999)


def matching_width(hidden_size: int, blocks: int) -> int:
    """Width R of a recurrence with 3 D R + 2 R² / blocks = 4 D², rounded to a multiple of 8 per block; 1.25 D at the paper's 12 blocks."""
    width = (math.sqrt(9 + 32 / blocks) - 3) * blocks / 4 * hidden_size
    return max(1, round(width / (8 * blocks))) * 8 * blocks


class BlockDiagonal(nn.Module):
    """``y = W x + b`` with `blocks` square blocks on the diagonal of W."""

    def __init__(self, width: int, blocks: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, width // blocks, width // blocks))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., width] -> [..., width]``"""
        y = torch.einsum("...ni,nij->...nj", x.unflatten(-1, (len(self.weight), -1)), self.weight)
        return y.flatten(-2) + self.bias


@dataclass(frozen=True, kw_only=True)
class RGLRUSettings:
    """Settings of :class:`RGLRU`.

    Attributes:
        hidden_size: Width of input and output, D.
        num_heads: Blocks of the matrices of both gates.
        recurrence_width: Width of the recurrence, a multiple of `num_heads`; None for :func:`matching_width`.
        conv_size: Width of the convolution.
    """

    hidden_size: int
    num_heads: int
    recurrence_width: int | None = None
    conv_size: int = 4

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"recurrence_width must be a multiple of num_heads = {self.num_heads}; got {self.width}")

    @property
    def width(self) -> int:
        """Width of the recurrence, also if none is given."""
        return self.recurrence_width or matching_width(self.hidden_size, self.num_heads)


@rule("rg_lru", "RG-LRU; the width of its recurrence is what matches the parameters", architecture="hawk")
class RGLRU(RecurrentMixer):
    r"""The recurrent block of "Griffin: Mixing Gated Linear Recurrences with Local Attention" (De et al., arXiv 2402.19427, 2.3-2.4).

    ::

        x = conv(W u)     r = sigmoid(W x + b)     i = sigmoid(W x + b)     a = exp(-8 softplus(Lambda) r)
        h <- a h + sqrt(1 - a^2) (i x)             y = W_o (GeLU(W u) h)

    The start is Griffin's (2.4): a^(1 / r), the decay where the gate r is 1, is uniform in [0.9, 0.999], and the gates' matrices have
    variance 1 / fan-in and no bias. (The code released with RecurrentGemma starts the eighth root of it there.) The convolution starts as
    those of all rules do, not at Griffin's hundredth of the fan-in variance, from which short trainings take longer to get away
    (docs/log.md, 2026-11-28).
    """

    Settings = RGLRUSettings

    no_weight_decay = ("decay_params",)

    def __init__(self, settings: RGLRUSettings, layer_idx: int | None = None):
        super().__init__(settings.hidden_size, layer_idx)
        hidden_size, width, blocks = settings.hidden_size, settings.width, settings.num_heads
        self.x_proj = nn.Linear(hidden_size, width, bias=False)
        self.y_proj = nn.Linear(hidden_size, width, bias=False)
        self.conv1d = ShortConvolution(width, settings.conv_size, bias=True, activation=None)
        self.r_gate = BlockDiagonal(width, blocks)
        self.i_gate = BlockDiagonal(width, blocks)
        self.decay_params = nn.Parameter(torch.empty(width, dtype=torch.float32))
        self.decay_params._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue] (fla's mark)
        self.o_proj = nn.Linear(width, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Spread the initial a^(1 / r) evenly. The other parameters belong to modules that initialize themselves."""
        decay = torch.empty(self.decay_params.shape, device=self.decay_params.device).uniform_(*DECAYS)
        fill(self.decay_params, torch.log(torch.expm1(-torch.log(decay) / C)))

    def _mix(
        self, x: torch.Tensor, conv: States | None, states: States | None, call: Call
    ) -> tuple[torch.Tensor, States | None, States | None]:
        gate = F.gelu(self.y_proj(x))
        u, state = self.conv1d(
            self.x_proj(x),
            cache=None if conv is None else conv[0],
            output_final_state=call.use_cache,
            cu_seqlens=call.cu_seqlens,
        )
        conv = None if state is None else (state,)
        r, i = self.r_gate(u).float().sigmoid(), self.i_gate(u).float().sigmoid()
        log_a = -C * F.softplus(self.decay_params.float()) * r
        # The bound keeps the gradient of the root finite where a comes near 1.
        size = (-torch.expm1(2 * log_a)).clamp(min=1e-6).sqrt()
        # One kernel for all: fla's chunked one takes no packed sequences.
        op: Any = fused_recurrent_hgrn  # fla's decorator hides its type
        h, final = op(
            size * i * u.float(),
            log_a,
            initial_state=None if states is None else states[0],
            output_final_state=call.use_cache,
            cu_seqlens=call.cu_seqlens,
        )
        return self.o_proj(gate * h.to(gate.dtype)), conv, None if final is None else (final,)
