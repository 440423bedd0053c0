"""Token mixers."""

from fla_mesa.layers.attention import Attention
from fla_mesa.layers.mesa_net import MesaNet
from fla_mesa.layers.rg_lru import RGLRU
from fla_mesa.layers.rules import DeltaRule, GatedDeltaRule, InputGatedLinearAttention, LinearAttention
from fla_mesa.layers.softmax import SoftmaxAttention

__all__ = [
    "RGLRU",
    "Attention",
    "DeltaRule",
    "GatedDeltaRule",
    "InputGatedLinearAttention",
    "LinearAttention",
    "MesaNet",
    "SoftmaxAttention",
]
