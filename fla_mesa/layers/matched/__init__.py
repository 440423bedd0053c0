"""MesaNet and its rivals in one parametrization, differing only in the recurrence rule (arXiv 2506.05233, appendix E.1).

To add a rule, write its file and name it in the list below, whose order is that of error messages and tests.
"""

# isort: off
from fla_mesa.layers.matched import (  # noqa: F401
    mesa,
    delta,
    gated_delta,
    gated_linear,
    gated_linear_no_input_gate,
    mlstm,
    gka,
    rg_lru,
    softmax,
    softmax_matched,
    sliding_softmax,
)

# isort: on
from fla_mesa.layers.matched.registry import RULES, Rule, rule

__all__ = ["RULES", "Rule", "rule"]
