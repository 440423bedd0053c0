"""transformers' xLSTM with tied embeddings, which its own class does not offer."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, xLSTMConfig, xLSTMForCausalLM


class TiedXLSTMConfig(xLSTMConfig):
    """transformers' ``xLSTMConfig`` under a ``model_type`` of its own."""

    model_type = "xlstm_tied"
    tie_word_embeddings: bool = True


class TiedXLSTMForCausalLM(xLSTMForCausalLM):
    """``xLSTMForCausalLM`` whose output projection is the embedding."""

    config_class = TiedXLSTMConfig
    _tied_weights_keys = {"lm_head.weight": "backbone.embeddings.weight"}  # noqa: RUF012 (transformers' own form)


AutoConfig.register(TiedXLSTMConfig.model_type, TiedXLSTMConfig, exist_ok=True)
AutoModelForCausalLM.register(TiedXLSTMConfig, TiedXLSTMForCausalLM, exist_ok=True)
