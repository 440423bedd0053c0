"""The rule of Gated KalmaNet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn

from fla_mesa.layers.matched.registry import rule
from fla_mesa.layers.recurrent import Call, QKVMixer, QKVSettings, States
from fla_mesa.ops.backends import l2_normalize
from fla_mesa.ops.gka import check_options, chunk_gka

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class GatedKalmaNetSettings(QKVSettings):
    """Settings of :class:`GatedKalmaNet`.

    Attributes:
        ridge_ratio: a, > 0.
        chebyshev_steps: Iterations of the solver, >= 1.
    """

    ridge_ratio: float = 0.02
    chebyshev_steps: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self.ridge_ratio, self.chebyshev_steps, "chebyshev_steps")


@rule(
    "gka", "Gated KalmaNet: ridge regression as in Mesa, with a ridge that grows with ||H||, mixed with the plain read"
)
class GatedKalmaNet(QKVMixer):
    """``H <- gamma H + beta k k'``, ``U <- gamma U + beta k v'``, ``o = U'(alpha x + (1 - alpha) q)``, ``x = (H + a ||H|| I)^-1 q``.

    The layer of "Gated KalmaNet: A Fading Memory Layer Through Test-Time Ridge Regression" (Peng et al., arXiv 2511.21016, 4), in the
    parametrisation of the others. The states are those of Mesa. alpha = sigmoid(W x + b) is one more scalar gate a head. The paper's
    recurrence has no beta; its layer in fla has, as a factor of both key and value, which is the square root of ours.
    """

    Settings = GatedKalmaNetSettings

    def __init__(self, settings: GatedKalmaNetSettings, layer_idx: int | None = None):
        super().__init__(settings, layer_idx)
        self.alpha_proj = nn.Linear(settings.hidden_size, settings.num_heads, bias=True)
        self.ridge_ratio, self.chebyshev_steps = settings.ridge_ratio, settings.chebyshev_steps

    def _mix(
        self, x: Tensor, conv: States | None, states: States | None, call: Call
    ) -> tuple[Tensor, States | None, States | None]:
        q, k, v, conv = self._qkv(x, conv, call.use_cache, call.cu_seqlens)
        g, beta = self._gates(x)
        assert g is not None and beta is not None and (states is None or len(states) == 2)
        o, states = chunk_gka(
            l2_normalize(q),
            l2_normalize(k),
            v,
            g,
            beta,
            self.alpha_proj(x).float().sigmoid(),
            ridge_ratio=self.ridge_ratio,
            num_iter=self.chebyshev_steps,
            initial_state=states,
            output_final_state=call.use_cache,
            cu_seqlens=call.cu_seqlens,
        )
        return self._output(o, x), conv, states
