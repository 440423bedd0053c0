"""The back end for GPUs, in Triton; on CPU tensors it runs in Triton's interpreter (``TRITON_INTERPRET=1``)."""

from fla.modules.norm.l2norm import l2norm as l2_normalize

from fla_mesa.ops import gpu
from fla_mesa.ops.triton.launch import chunk_backward, chunk_forward, decoding_step
from fla_mesa.ops.triton.plan import why_not

if gpu.interpreted():
    from fla_mesa.interpreter import mend_loops

    mend_loops()  # in what of fla is called here

TOLERANCE = 1e-4
TOLERANCE_16 = 1e-3  # over sequences of 16-bit inputs: 16 bits of the output show no less

__all__ = ["TOLERANCE", "TOLERANCE_16", "chunk_backward", "chunk_forward", "decoding_step", "l2_normalize", "why_not"]
