"""RMS, layer and group normalization, gated or not, and the L2 norm.

The forward and backward passes that all of fla.modules.norm is built on.

Shapes: x, y, residual `[R, D]`; weight, bias `[G * D]`, row r of x belongs to group r mod G; mean, rstd `[R]`.

    x^ = (x + residual - mean) * rstd,   y = x^ * weight + bias,   gated: y * act(g)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fla.modules.norm import fused_norm_gate, l2norm, layernorm, layernorm_gated
from fla.modules.norm.layernorm import group_norm

from fla_mesa.cpu.precision import up
from fla_mesa.cpu.registry import stand_in

Tensor = torch.Tensor


def _normalise(x: Tensor, residual: Tensor | None, residual_dtype: torch.dtype | None, eps: float, is_rms_norm: bool):
    """-> x^, mean, rstd, what continues in the residual stream (x itself if that is the same)"""
    h = up(x) if residual is None else up(x) + up(residual)
    stream = x
    if residual is not None or (residual_dtype is not None and residual_dtype != x.dtype):
        stream = h.to(x.dtype if residual_dtype is None else residual_dtype)
    mean = None
    if not is_rms_norm:
        mean = h.mean(-1)
        h = h - mean[:, None]
    # linalg.vecdot reads h once and stores no squares.
    rstd = (torch.linalg.vecdot(h, h) / h.shape[-1]).add_(eps).rsqrt_()
    return h * rstd[:, None], mean, rstd, stream


def _affine(x_hat: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int = 1) -> Tensor:
    y = x_hat.view(-1, num_groups, x_hat.shape[-1])
    if weight is not None:
        y = y * up(weight).view(num_groups, -1)
    if bias is not None:
        y = y + up(bias).view(num_groups, -1)
    return y.view_as(x_hat)


def _restore(x: Tensor, mean: Tensor | None, rstd: Tensor) -> Tensor:
    """x^ again, from what the forward pass kept"""
    x = up(x)
    return (x if mean is None else x - mean[:, None]) * rstd[:, None]


def _backward(
    dy: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    is_rms: bool,
    num_groups: int = 1,
):
    """-> dx, dweight, dbias in the precision of dy"""
    D = dy.shape[-1]
    dy_groups = dy.view(-1, num_groups, D)
    dw = None if weight is None else (dy_groups * x_hat.view_as(dy_groups)).sum(0).to(weight.dtype).view_as(weight)
    db = None if bias is None else dy_groups.sum(0).to(bias.dtype).view_as(bias)
    if weight is not None:
        dy = (dy_groups * up(weight).view(num_groups, -1)).view_as(dy)
    dx = dy - x_hat * (torch.linalg.vecdot(dy, x_hat) / D)[:, None]
    if not is_rms:
        dx -= dy.mean(-1, keepdim=True)
    return dx.mul_(rstd[:, None]), dw, db


def _residual_gradient(dx: Tensor, has_residual: bool, x: Tensor, x_dtype: torch.dtype | None):
    """-> gradient of x (in its own dtype) and of the residual (in the residual stream's, which is that of the saved x)"""
    dx_out = dx.to(x.dtype if x_dtype is None else x_dtype)
    if not has_residual:
        return dx_out, None
    return dx_out, dx_out if dx_out.dtype == x.dtype else dx.to(x.dtype)


@stand_in(layernorm.layer_norm_fwd)
def layer_norm_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    is_rms_norm: bool = False,
    num_groups: int = 1,
):
    x_hat, mean, rstd, stream = _normalise(
        x, residual, residual_dtype if residual is None else residual.dtype, eps, is_rms_norm
    )
    y = _affine(x_hat, weight, bias, num_groups)
    return y.to(x.dtype if out_dtype is None else out_dtype), mean, rstd, stream


@stand_in(layernorm.layer_norm_bwd)
def layer_norm_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    dres: Tensor | None = None,
    has_residual: bool = False,
    is_rms_norm: bool = False,
    x_dtype: torch.dtype | None = None,
    recompute_output: bool = False,
    num_groups: int = 1,
):
    assert rstd is not None
    x_hat = _restore(x, mean, rstd)
    dx, dw, db = _backward(up(dy), x_hat, rstd, weight, bias, is_rms_norm, num_groups)
    dx, dres_in = _residual_gradient(dx if dres is None else dx + dres, has_residual, x, x_dtype)
    if not recompute_output:
        return dx, dw, db, dres_in
    return dx, dw, db, dres_in, _affine(x_hat, weight, bias, num_groups).to(dy.dtype)


def _gate(g: Tensor, activation: str) -> Tensor:
    return torch.sigmoid(g) if activation == "sigmoid" else F.silu(g)


def _gate_backward(g: Tensor, activation: str, da: Tensor) -> Tensor:
    if activation == "sigmoid":
        return torch.ops.aten.sigmoid_backward(da, torch.sigmoid(g))
    return torch.ops.aten.silu_backward(da, g)


def _check_activation(activation: str) -> None:
    if activation not in ("swish", "silu", "sigmoid"):
        raise ValueError(f"`activation` must be 'swish', 'silu' or 'sigmoid', got {activation!r}")


@stand_in(fused_norm_gate.layer_norm_gated_fwd)
def layer_norm_gated_fwd(
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str = "swish",
    eps: float = 1e-5,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    is_rms_norm: bool = False,
):
    _check_activation(activation)
    x_hat, mean, rstd, stream = _normalise(
        x, residual, residual_dtype if residual is None else residual.dtype, eps, is_rms_norm
    )
    y = _affine(x_hat, weight, bias) * _gate(up(g), activation)
    return y.to(x.dtype if out_dtype is None else out_dtype), mean, rstd, stream


@stand_in(fused_norm_gate.layer_norm_gated_bwd)
def layer_norm_gated_bwd(
    dy: Tensor,
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str = "swish",
    eps: float = 1e-5,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    dresidual: Tensor | None = None,
    has_residual: bool = False,
    is_rms_norm: bool = False,
    x_dtype: torch.dtype | None = None,
    recompute_output: bool = False,
):
    assert rstd is not None
    x_hat = _restore(x, mean, rstd)
    n, a = _affine(x_hat, weight, bias), _gate(up(g), activation)
    dy_up = up(dy)
    dg = _gate_backward(up(g), activation, dy_up * n).to(g.dtype if x_dtype is None else x_dtype)
    dx, dw, db = _backward(dy_up * a, x_hat, rstd, weight, bias, is_rms_norm)
    dx, dres_in = _residual_gradient(dx if dresidual is None else dx + dresidual, has_residual, x, x_dtype)
    if not recompute_output:
        return dx, dg, dw, db, dres_in
    return dx, dg, dw, db, dres_in, (n * a).to(dy.dtype)


@stand_in(l2norm.l2norm_fwd)
def l2norm_fwd(x: Tensor, eps: float = 1e-6, output_dtype: torch.dtype | None = None):
    h = up(x)
    rstd = torch.linalg.vecdot(h, h).add_(eps).rsqrt_()
    return (h * rstd[..., None]).to(x.dtype if output_dtype is None else output_dtype), rstd


@stand_in(l2norm.l2norm_bwd)
def l2norm_bwd(y: Tensor, rstd: Tensor, dy: Tensor, eps: float = 1e-6):
    h, dh = up(y), up(dy)
    dx = (dh - h * torch.linalg.vecdot(dh, h)[..., None]).mul_(rstd[..., None])
    return dx.to(y.dtype)


@stand_in(layernorm_gated.layernorm_fn)
def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Mamba2's norm: over groups of `group_size` channels (all if None), of x or of x * silu(z)."""
    h = up(x) if z is None or norm_before_gate else up(x) * F.silu(up(z))
    groups = 1 if group_size is None else x.shape[-1] // group_size
    norm: Any = group_norm  # fla types a bias of None as a tensor
    y = norm(h, weight, bias, eps=eps, is_rms_norm=is_rms_norm, num_groups=groups)
    return (y * F.silu(up(z)) if z is not None and norm_before_gate else y).to(x.dtype)


@stand_in(layernorm_gated.rmsnorm_fn)
def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True)
