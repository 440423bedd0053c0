"""Elementwise activations and gated linear units of fla.modules.activations.

Every tensor argument of one call has one shape, `[..., D]`; outputs have the dtype of their input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fla.modules.activations import ops

from fla_mesa.cpu.precision import up
from fla_mesa.cpu.registry import stand_in

Tensor = torch.Tensor

# `output_contiguous` of fla's functions picks the layout of the output buffer; what is returned here is contiguous anyway.


@stand_in(ops.sigmoid_fwd)
def sigmoid_fwd(x: Tensor, output_contiguous: bool = False) -> Tensor:
    return torch.sigmoid(x).contiguous()


@stand_in(ops.sigmoid_bwd)
def sigmoid_bwd(x: Tensor, dy: Tensor, output_contiguous: bool = False) -> Tensor:
    return torch.ops.aten.sigmoid_backward(up(dy), torch.sigmoid(up(x))).to(x.dtype).contiguous()


@stand_in(ops.logsigmoid_fwd)
def logsigmoid_fwd(x: Tensor, temperature: float = 1.0, output_contiguous: bool = False) -> Tensor:
    return (F.logsigmoid(up(x)) / temperature).to(x.dtype).contiguous()


@stand_in(ops.logsigmoid_bwd)
def logsigmoid_bwd(x: Tensor, dy: Tensor, temperature: float = 1.0, output_contiguous: bool = False) -> Tensor:
    return (up(dy) * torch.sigmoid(-up(x)) / temperature).to(x.dtype).contiguous()


@stand_in(ops.swish_fwd)
def swish_fwd(x: Tensor, output_contiguous: bool = False) -> Tensor:
    return F.silu(x).contiguous()


@stand_in(ops.swish_bwd)
def swish_bwd(x: Tensor, dy: Tensor, output_contiguous: bool = False) -> Tensor:
    return torch.ops.aten.silu_backward(dy, x).contiguous()


@stand_in(ops.swiglu_fwd)
def swiglu_fwd(x: Tensor, y: Tensor, output_contiguous: bool = False) -> Tensor:
    return (F.silu(up(x)) * up(y)).to(x.dtype).contiguous()


@stand_in(ops.swiglu_fwdbwd)
def swiglu_fwdbwd(x: Tensor, y: Tensor, g: Tensor, use_weight: bool = False, output_contiguous: bool = False):
    """-> dx, dy of g = d loss / d z for z = silu(x) * y, and z where `use_weight`"""
    x_up, y_up, g_up = up(x), up(y), up(g)
    s = F.silu(x_up)
    dx = torch.ops.aten.silu_backward(g_up * y_up, x_up).to(x.dtype).contiguous()
    dy = (g_up * s).to(y.dtype).contiguous()
    return (dx, dy, (s * y_up).to(x.dtype).contiguous()) if use_weight else (dx, dy)


@stand_in(ops.swiglu_linear)
def swiglu_linear(x, y, weight, bias):
    # Whole, with autograd: fla's own function recomputes silu(x) * y in the backward pass to save memory, which costs
    # more time than it is worth on a CPU.
    return F.linear((F.silu(up(x)) * up(y)).to(x.dtype), weight, bias)


def _power_gate(x: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Gate of the Power Linear Unit (arXiv 2605.25704) and its derivative.

    x^(m / (sqrt(x) + 1)) sigmoid(x) for x > 0, x sigmoid(x) otherwise
    """
    s = torch.sigmoid(x)
    positive = x > 0
    xp = torch.where(positive, x, 1.0)
    root, log = xp.sqrt(), xp.log()
    p = power / (root + 1)
    gate = (p * log).exp() * s
    slope = -power / (2 * root * (root + 1).square())
    dgate = gate * (slope * log + p / xp + 1 - s)
    return torch.where(positive, gate, x * s), torch.where(positive, dgate, s * (1 + x * (1 - s)))


@stand_in(ops.powglu_fwd)
def powglu_fwd(x: Tensor, y: Tensor, power: float = 3.0, output_contiguous: bool = False) -> Tensor:
    return (_power_gate(up(x), power)[0] * up(y)).to(x.dtype).contiguous()


@stand_in(ops.powglu_fwdbwd)
def powglu_fwdbwd(
    x: Tensor, y: Tensor, g: Tensor, power: float = 3.0, use_weight: bool = False, output_contiguous: bool = False
):
    y_up, g_up = up(y), up(g)
    gate, dgate = _power_gate(up(x), power)
    dx, dy = (g_up * y_up * dgate).to(x.dtype).contiguous(), (g_up * gate).to(y.dtype).contiguous()
    return (dx, dy, (gate * y_up).to(x.dtype).contiguous()) if use_weight else (dx, dy)
