"""Gated KalmaNet's op (Peng et al., arXiv 2511.21016)."""

from fla_mesa.ops.gka.chunk import check_options, chunk_gka
from fla_mesa.ops.gka.reference import naive_gka_exact

__all__ = ["check_options", "chunk_gka", "naive_gka_exact"]
