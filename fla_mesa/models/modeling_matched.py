"""The matched family: MesaNet's models with other recurrence rules in some or all layers."""

from __future__ import annotations

import torch.nn as nn
from fla.models.configuration_utils import get_attention_spec

from fla_mesa.layers.matched import RULES
from fla_mesa.models.configuration_matched import MatchedConfig
from fla_mesa.models.modeling_mesanet import MesaNetBlock, MesaNetForCausalLM, MesaNetModel, MesaNetPreTrainedModel
from fla_mesa.models.modeling_mesanet import mixer as mesanet_mixer


def mixer(config: MatchedConfig, layer_idx: int) -> nn.Module:
    """The token mixer of a layer."""
    if get_attention_spec(config.attn, layer_idx=layer_idx) is not None:  # it has the last word, as in MesaNet
        return mesanet_mixer(config, layer_idx)
    return RULES[config.rule_of(layer_idx)].mixer.from_config(config, layer_idx)


class MatchedBlock(MesaNetBlock):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``."""

    mixer = staticmethod(mixer)


class MatchedPreTrainedModel(MesaNetPreTrainedModel):
    """Base class of the family's models."""

    config_class = MatchedConfig
    _no_split_modules = ["MatchedBlock"]  # noqa: RUF012 (transformers' own form)


class MatchedModel(MatchedPreTrainedModel, MesaNetModel):
    """Embedding, blocks and final norm."""

    block = MatchedBlock


class MatchedForCausalLM(MatchedPreTrainedModel, MesaNetForCausalLM):
    """Language models of the matched family."""

    decoder = MatchedModel
