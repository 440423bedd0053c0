"""The matched family: MesaNet's models with another recurrence rule in some or all layers."""

from __future__ import annotations

from typing import Any

import torch.nn as nn
from fla.models.configuration_utils import get_attention_spec

from fla_mesa.layers.matched import RULES
from fla_mesa.models.configuration_matched import MatchedConfig, matching_width
from fla_mesa.models.modeling_mesanet import MesaNetBlock, MesaNetForCausalLM, MesaNetModel
from fla_mesa.models.modeling_mesanet import mixer as mesanet_mixer


def mixer(config: MatchedConfig, layer_idx: int) -> nn.Module:
    """The token mixer of a layer."""
    rule = config.rule_of(layer_idx)
    in_hybrid = get_attention_spec(config.attn, layer_idx=layer_idx) is not None
    if rule == "mesa" or in_hybrid:  # config.attn has the last word, as in MesaNet
        return mesanet_mixer(config, layer_idx)
    cls: type[Any] = RULES[rule].mixer
    if rule == "rg_lru":
        width = config.recurrence_width or matching_width(config.hidden_size, config.num_heads)
        return cls(config.hidden_size, width, config.num_heads, config.conv_size, layer_idx)
    return cls.from_config(config, layer_idx)


class MatchedBlock(MesaNetBlock):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``."""

    mixer = staticmethod(mixer)


class MatchedModel(MesaNetModel):
    """Embedding, blocks and final norm."""

    config_class = MatchedConfig
    block = MatchedBlock
    _no_split_modules = ["MatchedBlock"]  # noqa: RUF012 (transformers' own form)


class MatchedForCausalLM(MesaNetForCausalLM):
    """The matched family as language models."""

    config_class = MatchedConfig
    decoder = MatchedModel
    _no_split_modules = ["MatchedBlock"]  # noqa: RUF012 (transformers' own form)
