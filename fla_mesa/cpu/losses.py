"""Cross-entropy on logits, and fused with the output projection.

    z = softcap * tanh(scale * logits / softcap)        (without a soft cap: z = scale * logits)
    loss = lse - (1 - s) z_target - s mean(z) + lse_square_scale * lse^2,    lse = logsumexp(z),  s = label smoothing

fla's autograd functions and losses stay as they are: they call the passes below, so reductions, chunking over tokens and the
regularisers around them are fla's own. Rows whose target is ignored, nearly all of a recall task's, are left
out of the backward pass, and fused with the projection out of both.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed
from fla.modules.fused_cross_entropy import ops as cross_entropy
from fla.modules.fused_linear_cross_entropy import ops as linear_cross_entropy

from fla_mesa.cpu.precision import up
from fla_mesa.cpu.registry import stand_in, stand_in_method, unsupported

Tensor = torch.Tensor

# Written in PyTorch around the passes that have a stand-in.
_FUSED: Any = inspect.unwrap(linear_cross_entropy.fused_linear_cross_entropy_fwd)


def _transformed(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    z = up(logits) if scale == 1 else up(logits) * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def _counted(target: Tensor, ignore_index: int) -> slice | Tensor:
    """Index of the rows that count: all of them without a copy, or their numbers."""
    counted = target != ignore_index
    return slice(None) if bool(counted.all()) else counted.nonzero()[:, 0]


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
    rows = _counted(target, ignore_index)
    z, lse, index = _transformed(logits[rows], logit_scale, logit_softcapping), lse[rows, None], target[rows, None]
    dz = (z - lse).exp_()
    if lse_square_scale:
        dz.mul_(1 + 2 * lse_square_scale * lse)
    if label_smoothing > 0:
        dz.sub_(label_smoothing / z.shape[-1])
    dz.scatter_add_(-1, index, dz.new_full(index.shape, label_smoothing - 1))
    if logit_softcapping is not None:
        dz.mul_(1 - (z / logit_softcapping).square_())
    dz.mul_(dloss[rows, None].to(dz.dtype) * logit_scale)
    if isinstance(rows, slice):
        return logits.copy_(dz) if inplace_backward else dz.to(logits.dtype)
    dlogits = logits.zero_() if inplace_backward else torch.zeros_like(logits)
    dlogits[rows] = dz.to(logits.dtype)
    return dlogits


@stand_in(linear_cross_entropy.fused_linear_cross_entropy_fwd)
def fused_linear_cross_entropy_fwd(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcapping: float | None = None,
    num_chunks: int = 8,
    reduction: str = "mean",
    use_l2warp: bool = False,
    l2_penalty_factor: float = 1e-4,
    accumulate_grad_in_fp32: bool = True,
    process_group: Any = None,
):
    """fla's function, on the rows of x `[N, D]` that count; its penalty on the largest logit needs all rows."""
    rows = slice(None) if use_l2warp else _counted(target, ignore_index)
    some = not isinstance(rows, slice) and len(rows) > 0
    loss, dx, dw, db = _FUSED(
        x[rows] if some else x,
        target[rows] if some else target,
        weight,
        bias,
        ignore_index,
        label_smoothing,
        logit_scale,
        logit_softcapping,
        num_chunks,
        reduction,
        use_l2warp,
        l2_penalty_factor,
        accumulate_grad_in_fp32,
        process_group,
    )
    return loss, torch.zeros_like(x).index_copy_(0, rows, dx) if some else dx, dw, db  # pyright: ignore[reportArgumentType]


@stand_in(linear_cross_entropy.fused_linear_cross_entropy_bwd)
def fused_linear_cross_entropy_bwd(do: Tensor, dx: Tensor, dw: Tensor, db: Tensor | None):
    """The forward pass has already computed the gradients; `do` is the scalar gradient of the loss."""
    if do.item() == 1:
        return dx, dw, db
    return tuple(None if d is None else (d * do).to(d.dtype) for d in (dx, dw, db))


@stand_in(linear_cross_entropy.logsumexp_fwd)
def logsumexp_fwd(x, scale: float | None = None, softcapping: float | None = None, dtype: torch.dtype | None = None):
    lse = _transformed(x, 1.0 if scale is None else scale, softcapping).logsumexp(-1)
    return lse if dtype is None else lse.to(dtype)


@stand_in_method(cross_entropy.FusedCrossEntropyLoss, "forward")
def forward(self: cross_entropy.FusedCrossEntropyLoss, input: Tensor, target: Tensor):
    """fla's method without its assertion that the tensors are on a GPU."""
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
