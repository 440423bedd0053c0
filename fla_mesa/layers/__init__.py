"""Token mixers. MesaNet's rivals are in ``matched``, listed by name in ``matched.RULES``."""

from fla_mesa.layers.attention import Attention
from fla_mesa.layers.mesa_net import MesaNet

__all__ = ["Attention", "MesaNet"]
