"""The Mesa op. Works on tensors; knows no layer, no model and no transformers."""

from fla_mesa.ops.chunk import chunk_mesa_net
from fla_mesa.ops.context_parallel import make_cp_context, take_shard
from fla_mesa.ops.query import mesa_net_query
from fla_mesa.ops.reference import naive_mesa_net_exact
from fla_mesa.ops.step import mesa_net_decoding_one_step
from fla_mesa.ops.types import SolverStats

__all__ = [
    "SolverStats",
    "chunk_mesa_net",
    "make_cp_context",
    "mesa_net_decoding_one_step",
    "mesa_net_query",
    "naive_mesa_net_exact",
    "take_shard",
]
