"""transformers' xLSTM with tied embeddings, small widths, padding and packed documents, which its own class lacks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, xLSTMConfig, xLSTMForCausalLM
from transformers.models.xlstm.modeling_xlstm import xLSTMCache, xLSTMCausalLMOutput
from typing_extensions import Unpack

from fla_mesa.layers.layout import Layout, SequenceKeywords, describes_sequences, find_layout
from fla_mesa.layers.recurrent import refuse_attentions
from fla_mesa.models.remote_code import keep_remote_code

Tensor = torch.Tensor


class TiedXLSTMConfig(xLSTMConfig):
    """transformers' ``xLSTMConfig`` with its own ``model_type``."""

    model_type = "xlstm_tied"
    tie_word_embeddings: bool = True
    attribute_map: ClassVar[dict[str, str]] = {"final_logit_softcapping": "output_logit_soft_cap"}

    @property
    def qk_dim(self) -> int:
        """Total key width in the layers; transformers rounds it up to 64 for the cache, which does not fit small widths."""
        return int(self.hidden_size * self.qk_dim_factor)

    @property
    def v_dim(self) -> int:
        """Total value width, likewise."""
        return int(self.hidden_size * self.v_dim_factor)


class TiedXLSTMForCausalLM(xLSTMForCausalLM):
    """``xLSTMForCausalLM`` that uses the embedding as output projection.

    transformers' code knows no sequences but rows. So a row that holds several, or padding, is given to it as one row a sequence, each
    padded at its end, which no token before it sees.
    """

    config_class = TiedXLSTMConfig
    accepts_loss_kwargs = True
    _tied_weights_keys = {"lm_head.weight": "backbone.embeddings.weight"}  # noqa: RUF012 (transformers' own form)

    @describes_sequences(unlisted=("shift_labels",))
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: xLSTMCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor | None = 0,
        num_items_in_batch: int | Tensor | None = None,
        shift_labels: Tensor | None = None,
        **sequences: Unpack[SequenceKeywords],
    ) -> tuple | xLSTMCausalLMOutput:
        """As :meth:`fla_mesa.models.MesaNetForCausalLM.forward`, except for the name of the cache.

        Raises:
            ValueError: Beyond what that raises: packed sequences with a cache; a cache in training; hidden states of packed or padded rows.
        """
        refuse_attentions(output_attentions)
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("pass either input_ids or inputs_embeds; got " + ("neither" if given is None else "both"))
        if sequences.get("cp_context") is not None:
            raise ValueError(f"cp_context: {type(self).__name__} cannot be split over ranks")
        layout = find_layout(given.shape[0], given.shape[1], attention_mask, **sequences)
        if use_cache is None:
            use_cache = self.config.use_cache and not torch.is_grad_enabled() and not layout.packed
        if use_cache and self.training and torch.is_grad_enabled():
            raise ValueError("use_cache must be False in training: xLSTM overwrites its states in place; got True")
        x = self.get_input_embeddings()(given) if inputs_embeds is None else inputs_embeds  # [B, T, D]
        if cache_params is None and use_cache:
            cache_params = _new_cache(self.config, x)
        elif cache_params is not None and not use_cache:
            cache_params = copy.deepcopy(
                cache_params
            )  # to be read only, and transformers' code writes to what it reads
        go: Callable[..., Any] = super().forward
        options = {"output_hidden_states": output_hidden_states, "return_dict": True}
        if layout.cu_seqlens is None:
            out = go(inputs_embeds=x, cache_params=cache_params, use_cache=use_cache, **options)
        else:
            if output_hidden_states or self.config.output_hidden_states:
                raise ValueError("output_hidden_states must be False for packed or padded rows; got True")
            if layout.packed and (use_cache or cache_params is not None):
                raise ValueError(
                    "cu_seqlens: packed sequences cannot be cached by xLSTM; got use_cache=True or cache_params"
                )
            out = self._apart(go, x, layout, cache_params, use_cache, options)
        targets = shift_labels
        if targets is None and labels is not None:
            targets = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
        if targets is not None:
            if targets.shape != given.shape[:2]:
                name = "labels" if shift_labels is None else "shift_labels"
                raise ValueError(
                    f"{name} must have the shape of the input, {list(given.shape[:2])}; got {list(targets.shape)}"
                )
            out.loss = self.loss_function(
                logits=out.logits,
                labels=None,
                shift_labels=targets.contiguous(),
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        elif logits_to_keep is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            out.logits = (
                out.logits[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else out.logits[:, logits_to_keep]
            )
        return out if (self.config.return_dict if return_dict is None else return_dict) else out.to_tuple()

    def _apart(
        self,
        go: Callable[..., Any],
        x: Tensor,
        layout: Layout,
        cache: xLSTMCache | None,
        use_cache: bool,
        options: dict,
    ) -> Any:
        """One row per sequence; puts the logits back into their places ``[B, T, vocabulary]``, zero at padding."""
        assert layout.cu_seqlens is not None
        lengths = layout.cu_seqlens.diff().tolist()
        parts = layout.pack(x)[0].split(lengths)  # each [its tokens, D]
        if cache is None:
            out = go(inputs_embeds=pad_sequence(list(parts), batch_first=True), use_cache=False, **options)
            logits = [row[:n] for row, n in zip(out.logits, lengths, strict=True)]
        else:  # states must not see the padding at the end, so each row goes alone
            rows = range(layout.batch) if layout.rows is None else layout.rows.tolist()
            logits = []
            for row, part in zip(rows, parts, strict=True):
                own = _new_cache(self.config, x[:1])
                _copy(cache, slice(row, row + 1), own, slice(None))
                out = go(inputs_embeds=part[None], cache_params=own, use_cache=True, **options)
                logits.append(out.logits[0])
                if use_cache:
                    _copy(own, slice(None), cache, slice(row, row + 1))
            if use_cache:
                cache.seqlen_offset += layout.length
        # (transformers 5.24 calls it cache, and takes both names)
        return xLSTMCausalLMOutput(logits=layout.unpack(torch.cat(logits)[None]), cache_params=cache)  # pyright: ignore[reportCallIssue]


def _new_cache(config: Any, x: Tensor) -> xLSTMCache:
    """A cache for the rows of ``x [B, T, D]``."""
    device: Any = x.device
    return xLSTMCache(config, len(x), device=device, dtype=x.dtype)


def _copy(source: xLSTMCache, rows: slice, target: xLSTMCache, to: slice) -> None:
    for layer, states in source.rnn_state.items():
        for old, new in zip(target.rnn_state[layer], states, strict=True):
            old[to].copy_(new[rows])


AutoConfig.register(TiedXLSTMConfig.model_type, TiedXLSTMConfig, exist_ok=True)
AutoModelForCausalLM.register(TiedXLSTMConfig, TiedXLSTMForCausalLM, exist_ok=True)
keep_remote_code(TiedXLSTMForCausalLM)
