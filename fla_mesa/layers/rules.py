"""Recurrence rules that the Mesa rule is compared with, in MesaNet's own parametrisation (arXiv 2506.05233, appendix E.1).

S is a head's state `[K, V]`; q, k of norm 1, v, gamma, beta are one token's. Each rule reads `o = S' q` after its update.
"""

from __future__ import annotations

from typing import Any

import torch
from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

from fla_mesa.layers.recurrent import Call, QKVMixer, States
from fla_mesa.ops.backends import l2_normalize

Tensor = torch.Tensor


class _Rule(QKVMixer):
    """A rule with one state: fla's op for sequences, and its op for a few tokens (their decorators hide their types)."""

    def _op(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, decode: bool, **call):
        """-> o `[B, T, H, V]` and the final state or None"""
        raise NotImplementedError

    def _recur(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None,
        beta: Tensor | None,
        states: States | None,
        call: Call,
    ) -> tuple[Tensor, States | None]:
        o, state = self._op(
            l2_normalize(q),
            l2_normalize(k),
            v,
            g,
            beta,
            call.decode,
            scale=1.0,
            initial_state=None if states is None else states[0],
            output_final_state=call.use_cache,
            cu_seqlens=call.cu_seqlens,
        )
        return o, None if state is None else (state,)


class LinearAttention(_Rule):
    """``S <- gamma S + k v'``: the paper's "Mamba2"."""

    input_gate = False

    def _op(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, decode: bool, **call):
        if beta is not None:
            v = (v * beta[..., None]).to(v.dtype)
        op: Any = fused_recurrent_simple_gla if decode else chunk_simple_gla
        return op(q, k, v, g, **call)


class InputGatedLinearAttention(LinearAttention):
    """``S <- gamma S + beta k v'``: the paper's "GLA"."""

    input_gate = True


class DeltaRule(_Rule):
    """``S <- S + beta k (v - S' k)'``."""

    forget_gate = False

    def _op(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, decode: bool, **call):
        assert beta is not None
        op: Any = fused_recurrent_delta_rule if decode else chunk_delta_rule
        return op(q, k, v, beta.to(v.dtype), **call)


class GatedDeltaRule(_Rule):
    """``S <- gamma S + beta k (v - gamma S' k)'``."""

    def _op(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, decode: bool, **call):
        assert g is not None and beta is not None
        op: Any = fused_recurrent_gated_delta_rule if decode else chunk_gated_delta_rule
        return op(q, k, v, g, beta=beta.to(v.dtype), **call)
