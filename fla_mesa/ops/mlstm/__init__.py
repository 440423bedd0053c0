"""The op of mLSTM (Beck et al., arXiv 2405.04517)."""

from fla_mesa.ops.mlstm.chunk import chunk_mlstm
from fla_mesa.ops.mlstm.reference import naive_mlstm

__all__ = ["chunk_mlstm", "naive_mlstm"]
