"""Cross entropy on logits, and fused with the output projection.

    z = softcap * tanh(scale * logits / softcap)        (without a soft cap: z = scale * logits)
    loss = lse - (1 - s) z_target - s mean(z) + lse_square_scale * lse^2,    lse = logsumexp(z),  s = label smoothing

fla's autograd functions and losses stay as they are: they call the two passes below, so reductions, chunking over tokens and
the regularisers around them are fla's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from fla.modules.fused_cross_entropy import ops as cross_entropy
from fla.modules.fused_linear_cross_entropy import ops as linear_cross_entropy

from fla_mesa.cpu.precision import up
from fla_mesa.cpu.registry import stand_in, stand_in_method, unsupported

Tensor = torch.Tensor


def _transformed(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    z = up(logits) if scale == 1 else up(logits) * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


@stand_in(cross_entropy.cross_entropy_fwd)
def cross_entropy_fwd(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    logit_softcapping: float | None = None,
    ignore_index: int = -100,
    process_group: Any = None,
):
    """logits `[N, V]`, target `[N]` -> loss, z_loss, lse `[N]` in float32 (float64 stays), V, 0"""
    if process_group is not None and torch.distributed.get_world_size(process_group) > 1:
        raise unsupported("process_group", process_group, "None or a group of one: the vocabulary cannot be sharded")
    z = _transformed(logits, logit_scale, logit_softcapping)
    lse = z.logsumexp(-1)
    counted = target != ignore_index
    z_loss = torch.where(counted, lse_square_scale * lse.square(), 0.0)
    z_target = z.gather(-1, torch.where(counted, target, 0)[:, None])[:, 0]
    loss = lse - (1 - label_smoothing) * z_target + z_loss
    if label_smoothing > 0:
        loss = loss - label_smoothing * z.mean(-1)
    return torch.where(counted, loss, 0.0), z_loss, lse, logits.shape[-1], 0


@stand_in(cross_entropy.cross_entropy_bwd)
def cross_entropy_bwd(
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    dloss: Tensor,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    logit_softcapping: float | None = None,
    ignore_index: int = -100,
    total_classes: int | None = None,
    class_start_idx: int = 0,
    inplace_backward: bool = False,
) -> Tensor:
    z = _transformed(logits, logit_scale, logit_softcapping)
    counted = target != ignore_index
    dz = (z - lse[:, None]).exp_()
    if lse_square_scale:
        dz.mul_(1 + 2 * lse_square_scale * lse[:, None])
    if label_smoothing > 0:
        dz.sub_(label_smoothing / z.shape[-1])
    index = torch.where(counted, target, 0)[:, None]
    dz.scatter_add_(-1, index, dz.new_full(index.shape, label_smoothing - 1))
    if logit_softcapping is not None:
        dz.mul_(1 - (z / logit_softcapping).square_())
    dz.mul_(torch.where(counted, dloss.to(dz.dtype) * logit_scale, 0.0)[:, None])
    return logits.copy_(dz) if inplace_backward else dz.to(logits.dtype)


@stand_in(linear_cross_entropy.fused_linear_cross_entropy_bwd)
def fused_linear_cross_entropy_bwd(do: Tensor, dx: Tensor, dw: Tensor, db: Tensor | None):
    """The forward pass has computed the gradients already; `do` is the scalar gradient of the loss."""
    if do.item() == 1:
        return dx, dw, db
    return tuple(None if d is None else (d * do).to(d.dtype) for d in (dx, dw, db))


@stand_in(linear_cross_entropy.logsumexp_fwd)
def logsumexp_fwd(x, scale: float | None = None, softcapping: float | None = None, dtype: torch.dtype | None = None):
    lse = _transformed(x, 1.0 if scale is None else scale, softcapping).logsumexp(-1)
    return lse if dtype is None else lse.to(dtype)


@stand_in_method(cross_entropy.FusedCrossEntropyLoss, "forward")
def forward(self: cross_entropy.FusedCrossEntropyLoss, input: Tensor, target: Tensor):
    """fla's method, but for its assertion that the tensors are on a GPU."""
    cross_entropy_loss: Any = cross_entropy.cross_entropy_loss
    loss, z_loss = cross_entropy_loss(
        input,
        target,
        self.label_smoothing,
        self.logit_scale,
        self.lse_square_scale,
        self.logit_softcapping,
        self.ignore_index,
        self.inplace_backward,
        self.process_group,
    )
    if self.reduction != "none":
        count = (target != self.ignore_index).sum() if self.reduction == "mean" else 1
        loss, z_loss = loss.sum() / count, z_loss.sum() / count
    return (loss, z_loss) if self.return_z_loss else loss
