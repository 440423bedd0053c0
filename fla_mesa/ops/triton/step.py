"""Launch of the decoding step."""

from __future__ import annotations

import torch
from fla.utils import input_guard

from fla_mesa.ops.triton.kernels_step import step_kernel
from fla_mesa.ops.triton.plan import power_of_two, size_class
from fla_mesa.ops.types import DecodingStep


@input_guard  # pyright: ignore[reportArgumentType] (fla types it for functions that return a tensor)
def decoding_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    lamb: torch.Tensor,
    h_kk: torch.Tensor,
    h_kv: torch.Tensor,
    *,
    max_steps: int,
    tolerance: float,
) -> DecodingStep:
    """One position in one kernel, without gradients. Shapes ``[B, H, ...]`` as in ``fla_mesa.ops.mesa_net_decoding_one_step``."""
    B, H, K, V = *k.shape, v.shape[-1]
    BK = power_of_two(K)
    result = DecodingStep(
        torch.empty_like(v),
        torch.empty_like(h_kk, dtype=torch.float32),
        torch.empty_like(h_kv, dtype=torch.float32),
        k.new_empty(B, H, dtype=torch.int32),
        k.new_empty(B, H, dtype=torch.float32),
    )
    resident = BK <= 128
    step_kernel[(B * H,)](
        q=q, k=k, v=v, g=g, beta=beta, lamb=lamb, h_kk=h_kk, h_kv=h_kv, h_kk_new=result.h_kk, h_kv_new=result.h_kv,
        o=result.o, iterations=result.iterations, residual=result.residual,
        scratch=None if resident else k.new_empty(B, H, K, dtype=torch.float32), size=size_class(B * H), max_steps=max_steps,
        tolerance=tolerance, H=H, K=K, V=V, BK=BK, BV=min(power_of_two(V), 64), BD=32, RESIDENT=resident,
    )  # fmt: skip
    return result
