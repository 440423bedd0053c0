"""Token mixers."""

from fla_mesa.layers.attention import Attention
from fla_mesa.layers.matched.delta import DeltaRule
from fla_mesa.layers.matched.gated_delta import GatedDeltaRule
from fla_mesa.layers.matched.gated_linear import InputGatedLinearAttention
from fla_mesa.layers.matched.gated_linear_no_input_gate import LinearAttention
from fla_mesa.layers.matched.rg_lru import RGLRU
from fla_mesa.layers.matched.softmax import SoftmaxAttention
from fla_mesa.layers.mesa_net import MesaNet

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
