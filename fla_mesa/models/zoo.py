"""Architectures of the comparison by name, and the sizes they come in."""
