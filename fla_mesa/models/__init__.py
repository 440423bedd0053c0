"""The MesaNet family, registered with transformers' Auto classes as ``mesanet``, and ``mesanet_matched``, its rivals in its own terms."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fla_mesa.models import xlstm  # noqa: F401 (registers itself)
from fla_mesa.models.configuration_matched import MatchedConfig
from fla_mesa.models.configuration_mesanet import MesaNetConfig
from fla_mesa.models.modeling_matched import MatchedForCausalLM, MatchedModel
from fla_mesa.models.modeling_mesanet import MesaNetForCausalLM, MesaNetModel

for _config, _model, _language_model in (
    (MesaNetConfig, MesaNetModel, MesaNetForCausalLM),
    (MatchedConfig, MatchedModel, MatchedForCausalLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForCausalLM.register(_config, _language_model, exist_ok=True)

__all__ = [
    "MatchedConfig",
    "MatchedForCausalLM",
    "MatchedModel",
    "MesaNetConfig",
    "MesaNetForCausalLM",
    "MesaNetModel",
]
