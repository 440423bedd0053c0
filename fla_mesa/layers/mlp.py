"""fla's gated MLP, with a final projection that may be any module."""

from __future__ import annotations

import torch
import torch.nn as nn
from fla.modules import GatedMLP as FlaGatedMLP
from fla.modules.activations import powglu, swiglu


class GatedMLP(FlaGatedMLP):
    """``W_down (SiLU(W_gate x) * W_up x)``.

    fla's own, where it is fused, reads the weight of ``down_proj`` and passes by what else that module does: the adapter that PEFT put
    there, a quantised weight, a hook. Here it is fused only where there is nothing to pass by.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., D] -> [..., D]``"""
        return super().forward(x) if not self.fuse_swiglu or is_bare(self.down_proj) else unfused(self, x)


def unfused(layer: FlaGatedMLP, x: torch.Tensor) -> torch.Tensor:
    """``W_down (SiLU(W_gate x) * W_up x)`` for ``x [..., D]``, calling the final projection as a module."""
    gate, y = layer.gate_proj(x), layer.up_proj(x)
    return layer.down_proj(powglu(gate, y, layer.powglu_power) if layer.hidden_act == "powlu" else swiglu(gate, y))


def is_bare(module: nn.Module) -> bool:
    """Whether calling a linear layer does nothing beyond applying its weight and bias."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) is nn.Linear and not hooked
