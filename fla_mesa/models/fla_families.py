"""Makes fla's families accept or refuse the same arguments as this package's models when they run on CPU stand-ins.

fla's models hand keywords that they do not know down to layers that drop them: of two documents under ``cu_seq_lens_q`` one reads the
other, and ``shift_labels`` gives no loss. On CPU tensors these are translated to what fla knows, or refused, by name; calls on a GPU run
fla's code as it is.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from fla.layers.attn import Attention
from fla.models.modeling_utils import FLAPreTrainedModel
from fla.modules import GatedMLP

from fla_mesa.cpu.registry import on_cpu, put
from fla_mesa.layers.attention import attend
from fla_mesa.layers.layout import SEQUENCE_KEYWORDS, find_layout, unknown_keyword
from fla_mesa.layers.mlp import is_bare, unfused
from fla_mesa.layers.recurrent import refuse_attentions

Forward = Callable[..., Any]


def install() -> None:
    """Apply the repairs to every model of fla, new or existing, until the stand-ins are removed."""
    for family in _families(FLAPreTrainedModel):
        if family.__module__.startswith("fla.models.") and "forward" in vars(family):
            has_labels = "labels" in inspect.signature(family.forward).parameters
            _repair(family, _language_model if has_labels else _model)
    _repair(Attention, _attention)
    _repair(GatedMLP, _mlp)


def _families(base: type) -> list[type]:
    return [base, *(family for below in base.__subclasses__() for family in _families(below))]


def _repair(owner: Any, repaired: Callable[[Forward], Forward]) -> None:
    """Sends calls of ``owner.forward`` whose first tensor is on the CPU to `repaired`'s version of it."""
    original = owner.forward
    on_the_cpu = repaired(original)

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (on_the_cpu if on_cpu(*args, **kwargs) else original)(self, *args, **kwargs)

    put(owner, "forward", forward)


def _model(original: Forward) -> Forward:
    """For a family's model: turns every description of sequences into ``cu_seqlens``."""
    signature = inspect.signature(original)
    own = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD][1:]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in own and name not in SEQUENCE_KEYWORDS:
                raise unknown_keyword(f"{type(self).__name__}.forward", name, [*own, *SEQUENCE_KEYWORDS])
        sequences = {name: kwargs.pop(name) for name in SEQUENCE_KEYWORDS if name not in own and name in kwargs}
        if sequences.get("cp_context") is not None:
            raise ValueError(f"cp_context: {type(self).__name__} cannot be split over ranks")
        call = signature.bind_partial(self, *args, **kwargs).arguments
        given = call.get("input_ids") if call.get("inputs_embeds") is None else call["inputs_embeds"]
        if given is None:
            return original(self, *args, **kwargs)
        layout = find_layout(given.shape[0], given.shape[1], call.get("attention_mask"), **sequences)
        if layout.packed:
            if layout.batch > 1 or layout.indices is not None:
                raise ValueError(
                    f"{type(self).__name__} takes several sequences in one row without padding only; got a batch of {layout.batch}"
                    f"{'' if layout.indices is None else ' under a mask'}: pack the tokens into one row and pass cu_seqlens"
                )
            if call.get("use_cache") is None:
                kwargs["use_cache"] = False
            call = signature.bind_partial(self, *args, **kwargs).arguments
            call.pop("kwargs", None)
            return original(**{**call, "attention_mask": None, "cu_seqlens": layout.cu_seqlens})
        return original(self, *args, **kwargs)

    return forward


def _language_model(original: Forward) -> Forward:
    """For a family's language model: turns ``shift_labels`` into labels, which it shifts itself."""

    def forward(self: Any, *args: Any, shift_labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if shift_labels is not None:
            if bool((shift_labels[:, -1] != -100).any()):
                raise ValueError(
                    f"shift_labels must be -100 at the last position: {type(self).__name__} shifts labels itself, and has none there"
                )
            kwargs["labels"] = shift_labels.roll(1, 1)
        return original(self, *args, **kwargs)

    return forward


def _attention(original: Forward) -> Forward:
    """For softmax attention: padding on either side, with a cache, in calls of any length."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        output_attentions: bool = False,
        use_cache: bool = False,
        cu_seqlens: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        refuse_attentions(output_attentions)
        batch, length = hidden_states.shape[:2]
        layout = find_layout(batch, length, attention_mask, cu_seqlens=cu_seqlens)
        use_cache = bool(use_cache) and past_key_values is not None
        return attend(self, hidden_states, layout, past_key_values, use_cache), None, past_key_values

    return forward


def _mlp(original: Forward) -> Forward:
    """For the gated MLP: an adapter on its final projection."""

    def forward(self: Any, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return original(self, x, **kwargs) if not self.fuse_swiglu or is_bare(self.down_proj) else unfused(self, x)

    return forward
