"""One decoding step of the Mesa op in PyTorch."""

from __future__ import annotations

import torch

from fla_mesa.ops.pytorch.solver import Solve, conjugate_gradients
from fla_mesa.ops.types import DecodingStep


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
    solve: Solve = conjugate_gradients,
) -> DecodingStep:
    """See :func:`fla_mesa.ops.mesa_net_decoding_one_step`. Same coordinates as the chunk form: ``H~ = L^-1/2 H L^-1/2``.

    There, the plain iteration is one with lamb as preconditioner; lamb once more undoes that, so that n steps are the paper's and fla's n.
    """
    dtype = torch.promote_types(h_kk.dtype, torch.float32)
    unit = lamb.to(dtype).rsqrt()  # [H, K]
    k_, v_, decay = k.to(dtype), v.to(dtype), g.to(dtype).exp()[..., None, None]
    weighted = (beta.to(dtype)[..., None] * k_).unsqueeze(-1)  # [B, H, K, 1]
    h_kk = torch.addcmul(decay * h_kk, weighted, k_.unsqueeze(-2))
    h_kv = torch.addcmul(decay * h_kv, weighted, v_.unsqueeze(-2))
    matrix = (unit[:, :, None] * h_kk * unit[:, None, :]).flatten(0, 1)  # [B H, K, K]

    b = (q.to(dtype) * unit).flatten(0, 1).unsqueeze(1)  # [B H, 1, K]
    plain = lamb.to(dtype).repeat(len(q), 1).unsqueeze(1)  # [B H, 1, K]
    x, iterations, residual = solve(StateOperator(matrix), b, max_steps, tolerance, plain)
    x = x.view_as(q) * unit
    o = (x.unsqueeze(-2) @ h_kv).squeeze(-2)
    shape = q.shape[:2]
    return DecodingStep(o.to(v.dtype), h_kk, h_kv, iterations.view(shape), residual.view(shape).float())


class StateOperator:
    """``p -> (H + I) p`` for the rows p ``[Z, C, K]`` of states H ``[Z, K, K]``."""

    def __init__(self, h: torch.Tensor):
        self.h = h

    def __call__(self, p: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(p, p, self.h, out=out)

    def diagonal(self) -> torch.Tensor:
        """``diag(H + I)``, ``[Z, 1, K]``."""
        return torch.diagonal(self.h, dim1=-2, dim2=-1).unsqueeze(1).add(1).clamp_(min=1)

    def matrices(self) -> torch.Tensor:
        """``H + I``, ``[Z, 1, K, K]``."""
        return (self.h + torch.eye(self.h.shape[-1], dtype=self.h.dtype, device=self.h.device)).unsqueeze(1)

    def select(self, tiles: torch.Tensor) -> StateOperator:
        """That of some rows only."""
        return StateOperator(self.h[tiles])
