"""The Mesa layer as one rule among the others."""

from __future__ import annotations

from fla_mesa.layers.matched.registry import rule
from fla_mesa.layers.mesa_net import MesaNet

rule("mesa", "Mesa, the released MesaNet", architecture="mesanet")(MesaNet)
