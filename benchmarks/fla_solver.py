"""What the gradients of fla's solver cost a model: MesaNet trained with it, beside MesaNet trained with this package's.

    fla-mesa compare --plugin benchmarks/fla_solver.py --parametrization matched --size tiny --seq_len 512 \\
        --per_device_train_batch_size 4 --max_steps 300 --seeds 1,2,3 --grid_seeds 1 --lr 1e-3,3e-3,1e-2 \\
        --models mesanet,mesanet@backend=fla_solver,mesanet@backend=fla_solver_32nd --baseline mesanet \\
        --config_overrides '{"gamma_init": [0.5, 0.98]}' --output_dir runs/fla-solver

A plug-in with two back ends. "fla_solver" solves as the kernels of flash-linear-attention 0.6.0 do
(fla/ops/mesa_net/chunk_cg_solver_fwd.py, chunk_cg_solver_bwd.py): from 0, all of its steps, 1e-5 added to both denominators. The loss is a
mean over tokens, so that the gradient at a position shrinks as the batch grows: "fla_solver_32nd" is given a gradient 32 times smaller, and
its own multiplied by 32, which would change nothing if the solve were right. With 2,048 tokens a step that is the gradient of a step of
65,536.

In float32, so that nothing but the constant differs (the kernels also round to 16 bits). Everything but the solve is the PyTorch back
end's, in whose coordinates (``L^-1/2 q`` for ``L = diag(lamb)``, which starts at 1) it iterates.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType

import torch

from fla_mesa.ops import pytorch
from fla_mesa.ops.backends import register_backend
from fla_mesa.ops.pytorch.solver import Operator
from fla_mesa.ops.types import ChunkForward, ChunkGradients

BIAS = 1e-5


def fla_conjugate_gradients(
    operator: Operator, b: torch.Tensor, max_steps: int, tolerance: float, preconditioner: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``fla_mesa.ops.pytorch.solver.conjugate_gradients``, which see for shapes; `tolerance` is not looked at."""
    x, r, p, product = torch.zeros_like(b), b.clone(), b.clone(), torch.empty_like(b)
    rr = r.square().sum(-1, keepdim=True)
    for _ in range(max_steps):
        operator(p, product)
        step = rr / ((p * product).sum(-1, keepdim=True) + BIAS)
        x.addcmul_(p, step)
        r.addcmul_(product, step, value=-1)
        rr, before = r.square().sum(-1, keepdim=True), rr
        p = torch.addcmul(r, p, rr / (before + BIAS))
    residual = (rr / b.square().sum(-1, keepdim=True).clamp(min=torch.finfo(b.dtype).tiny)).sqrt().squeeze(-1)
    return x, torch.full_like(residual, max_steps, dtype=torch.int32), residual


def chunk_forward(*tensors, **options) -> ChunkForward:
    """See :class:`~fla_mesa.ops.backends.Backend`."""
    return pytorch.chunk_forward(*tensors, **options, solve=fla_conjugate_gradients)


def chunk_backward(
    k, v, g, beta, lamb, h_kk_init, h_kv_init, x, do, dh_kk, dh_kv, *, shrink=1, **options
) -> ChunkGradients:
    """See :class:`~fla_mesa.ops.backends.Backend`; incoming gradients are divided by `shrink`, and what they give multiplied by it."""
    do, dh_kk, dh_kv = (None if d is None else d / shrink for d in (do, dh_kk, dh_kv))
    found = pytorch.chunk_backward(
        k, v, g, beta, lamb, h_kk_init, h_kv_init, x, do, dh_kk, dh_kv, **options, solve=fla_conjugate_gradients
    )
    return ChunkGradients(*(None if d is None else d * shrink for d in found))


def _register(name: str, shrink: int) -> None:
    """A back end is a module."""
    module = ModuleType(f"{__name__}_{name}")
    vars(module).update({part: getattr(pytorch, part) for part in pytorch.__all__})
    vars(module).update(chunk_forward=chunk_forward, chunk_backward=functools.partial(chunk_backward, shrink=shrink))
    sys.modules[module.__name__] = module
    register_backend(name, module.__name__)


_register("fla_solver", 1)
_register("fla_solver_32nd", 32)
