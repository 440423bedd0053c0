"""The rule of mLSTM: the paper's "xLSTM"."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fla_mesa.layers.matched.registry import rule
from fla_mesa.layers.recurrent import Call, QKVMixer, States
from fla_mesa.ops.mlstm import chunk_mlstm

Tensor = torch.Tensor


@rule(
    "mlstm",
    "mLSTM: linear attention with a sigmoid forget gate, an exponential input gate and a normaliser; keys are not of norm 1",
    architecture="xlstm",
)
class MLSTM(QKVMixer):
    """``G <- gamma G + e^i k v'``, ``z <- gamma z + e^i k``, ``o = G'q / max(|z'q|, 1)`` (Beck et al., arXiv 2405.04517, 2.3).

    i = W x + b is the logarithm of the input gate, gamma = sigmoid(W x + b). Keys are divided by sqrt(d) there, in place of the norm of 1
    that the other rules give queries and keys (arXiv 2506.05233, appendix E). Projections, convolutions (then SiLU), the start of the
    forget gates and the norm on the output are those of the other rules; what of these the paper's mLSTM had it does not say.
    """

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log gamma and i, ``[B, T, H]`` in float32."""
        return F.logsigmoid(self.a_proj(x).float()), self.b_proj(x).float()

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
        assert g is not None and beta is not None and (states is None or len(states) == 3)
        return chunk_mlstm(
            q,
            k * self.head_dim**-0.5,
            v,
            g,
            beta,
            initial_state=states,
            output_final_state=call.use_cache,
            cu_seqlens=call.cu_seqlens,
        )
