"""The MesaNet family, registered with transformers' Auto classes as ``mesanet``, and the matched rivals as ``mesanet_matched``."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from fla_mesa.models import regression, remote_code, xlstm  # noqa: F401 (they register themselves)
from fla_mesa.models.configuration_matched import MatchedConfig
from fla_mesa.models.configuration_mesanet import MesaNetConfig
from fla_mesa.models.heads import (
    MatchedForQuestionAnswering,
    MatchedForSequenceClassification,
    MatchedForTokenClassification,
    MesaNetForQuestionAnswering,
    MesaNetForSequenceClassification,
    MesaNetForTokenClassification,
)
from fla_mesa.models.modeling_matched import MatchedForCausalLM, MatchedModel
from fla_mesa.models.modeling_mesanet import MesaNetForCausalLM, MesaNetModel

AutoConfig.register(MesaNetConfig.model_type, MesaNetConfig, exist_ok=True)
AutoConfig.register(MatchedConfig.model_type, MatchedConfig, exist_ok=True)
for _auto, _mesanet, _matched in (
    (AutoModel, MesaNetModel, MatchedModel),
    (AutoModelForCausalLM, MesaNetForCausalLM, MatchedForCausalLM),
    (AutoModelForSequenceClassification, MesaNetForSequenceClassification, MatchedForSequenceClassification),
    (AutoModelForTokenClassification, MesaNetForTokenClassification, MatchedForTokenClassification),
    (AutoModelForQuestionAnswering, MesaNetForQuestionAnswering, MatchedForQuestionAnswering),
):
    _auto.register(MesaNetConfig, _mesanet, exist_ok=True)
    _auto.register(MatchedConfig, _matched, exist_ok=True)

__all__ = [
    "MatchedConfig",
    "MatchedForCausalLM",
    "MatchedForQuestionAnswering",
    "MatchedForSequenceClassification",
    "MatchedForTokenClassification",
    "MatchedModel",
    "MesaNetConfig",
    "MesaNetForCausalLM",
    "MesaNetForQuestionAnswering",
    "MesaNetForSequenceClassification",
    "MesaNetForTokenClassification",
    "MesaNetModel",
]
