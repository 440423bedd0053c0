"""The language models' loss: cross-entropy on logits with a soft cap."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
import torch.nn as nn
from fla.modules import FusedCrossEntropyLoss, FusedLinearCrossEntropyLoss

from fla_mesa.models.configuration_mesanet import MesaNetConfig
from fla_mesa.ops.context_parallel import ContextLike, sum_over_ranks


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """``cap * tanh(logits / cap)`` for logits ``[..., vocabulary]``; the logits themselves without a cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


class SoftCappedLoss(nn.Module):
    """Another loss, applied to capped logits.

    Args:
        criterion: Takes logits ``[N, vocabulary]`` and targets ``[N]``.
        cap: The cap.
    """

    def __init__(self, criterion: nn.Module, cap: float):
        super().__init__()
        self.criterion, self.cap = criterion, cap
        # What fla's models read and set.
        self.ignore_index = getattr(criterion, "ignore_index", -100)
        self.reduction = getattr(criterion, "reduction", "mean")

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """``input [N, vocabulary]``, ``target [N]``."""
        criterion: Any = copy(self.criterion)
        criterion.reduction = self.reduction
        return criterion(soft_cap(input, self.cap), target)


def make_criterion(config: MesaNetConfig) -> nn.Module:
    """The configuration's loss, on raw logits ``[N, vocabulary]``, or on hidden states if fused with the projection."""
    if config.fuse_linear_cross_entropy:
        criterion = FusedLinearCrossEntropyLoss()
    elif config.fuse_cross_entropy:
        criterion = FusedCrossEntropyLoss(inplace_backward=True)
    else:
        criterion = nn.CrossEntropyLoss()
    return capped(criterion, config)


def capped(criterion: nn.Module | None, config: MesaNetConfig) -> nn.Module:
    """The model's criterion with its cap (and penalty), even if it was replaced; unchanged if it already has them.

    Trainers replace it: flame, by fla's fused linear loss without any setting.
    """
    if criterion is None:
        return make_criterion(config)
    settings = {"logit_softcapping": config.logit_soft_cap, "use_l2warp": config.use_l2warp}
    if hasattr(criterion, "logit_softcapping"):  # fla's own: the cap is fused
        differing = {
            name for name in settings if hasattr(criterion, name) and getattr(criterion, name) != settings[name]
        }
        if differing:
            criterion = copy(criterion)
            for name in differing:
                setattr(criterion, name, settings[name])
        return criterion
    if config.logit_soft_cap is None or (
        isinstance(criterion, SoftCappedLoss) and criterion.cap == config.logit_soft_cap
    ):
        return criterion
    return SoftCappedLoss(criterion, config.logit_soft_cap)


def check_loss_of_shards(labels: torch.Tensor | None, use_l2warp: bool) -> None:
    """Refuses losses that cannot be computed from a shard ``[1, T_local]`` of a row.

    Raises:
        ValueError: Such a loss is asked for.
    """
    if labels is not None:
        raise ValueError(
            "labels cannot be combined with cp_context, as the target of a shard's last token is on the next rank: shift them before the "
            "row is cut, and pass this rank's shard as shift_labels"
        )
    if use_l2warp:
        raise ValueError(
            "use_l2warp must be False with cp_context: its penalty counts the tokens of the whole row; got True"
        )


def loss_of_shards(
    loss: torch.Tensor, shift_labels: torch.Tensor, items: int | torch.Tensor | None, cp_context: ContextLike
) -> torch.Tensor:
    """Loss of the whole row from each rank's sum over its targets ``[1, T_local]``, divided by `items` or the number of all targets."""
    number = (shift_labels != -100).sum() if items is None else torch.zeros((), device=loss.device)
    total, targets = sum_over_ranks(torch.stack([loss.double(), number.to(loss.device, torch.float64)]), cp_context)
    return (total / (targets if items is None else items)).to(loss.dtype)
