"""The MesaNet family, registered with transformers' Auto classes as ``mesanet``."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fla_mesa.models.configuration_mesanet import MesaNetConfig
from fla_mesa.models.modeling_mesanet import MesaNetForCausalLM, MesaNetModel

AutoConfig.register(MesaNetConfig.model_type, MesaNetConfig, exist_ok=True)
AutoModel.register(MesaNetConfig, MesaNetModel, exist_ok=True)
AutoModelForCausalLM.register(MesaNetConfig, MesaNetForCausalLM, exist_ok=True)

__all__ = ["MesaNetConfig", "MesaNetForCausalLM", "MesaNetModel"]
