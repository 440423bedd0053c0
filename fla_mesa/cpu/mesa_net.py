"""fla's own mesa_net op, computed by this package's op.

fla runs a fixed number of conjugate-gradient steps, at most `max_CG_iteration` of which are of use. Here a system stops when
its residual is at the level of float32, so what differs is rounding.
"""

from __future__ import annotations

import torch
from fla.ops import mesa_net

from fla_mesa import ops
from fla_mesa.cpu.registry import stand_in

Tensor = torch.Tensor

TOLERANCE = 1e-6


@stand_in(mesa_net.chunk_mesa_net)
def chunk_mesa_net(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    h_kk_init: Tensor | None = None,
    h_kv_init: Tensor | None = None,
    output_final_state: bool = False,
    max_CG_iteration: int = 30,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
):
    return ops.chunk_mesa_net(
        q,
        k,
        v,
        g,
        beta,
        lamb,
        h_kk_init,
        h_kv_init,
        output_final_state,
        max_CG_iteration,
        use_qk_l2norm_in_kernel,
        cu_seqlens,
        cu_seqlens_cpu,
        cg_tolerance=TOLERANCE,
    )


@stand_in(mesa_net.mesa_net_decoding_one_step)
def mesa_net_decoding_one_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    lamb: Tensor,
    beta: Tensor,
    prev_h_kk: Tensor,
    prev_h_kv: Tensor,
    max_CG_iteration: int = 30,
):
    return ops.mesa_net_decoding_one_step(
        q, k, v, g, lamb, beta, prev_h_kk, prev_h_kv, max_CG_iteration, cg_tolerance=TOLERANCE
    )
