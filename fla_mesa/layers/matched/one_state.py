"""The common part of rules with one state: a head's S ``[K, V]``, read as ``o = S' q`` after its update."""

from __future__ import annotations

import torch

from fla_mesa.layers.recurrent import Call, QKVMixer, States
from fla_mesa.ops.backends import l2_normalize

Tensor = torch.Tensor


class OneState(QKVMixer):
    """A rule with one state, on q and k of norm 1: fla's op for sequences, and its op for single tokens."""

    def _op(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, decode: bool, **call):
        """-> o `[B, T, H, V]` and the final state or None"""
        raise NotImplementedError

    def _state_before(
        self, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, states: States | None, call: Call
    ) -> Tensor | None:
        """State before each sequence, or None for zero; rules that support context parallelism get it from other ranks."""
        return None if states is None else states[0]

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
        q, k = l2_normalize(q), l2_normalize(k)
        o, state = self._op(
            q,
            k,
            v,
            g,
            beta,
            call.decode,
            scale=1.0,
            initial_state=self._state_before(k, v, g, beta, states, call),
            output_final_state=call.use_cache,
            cu_seqlens=call.cu_seqlens,
        )
        return o, None if state is None else (state,)
