"""What tests and benchmarks share; nothing of the product imports it.

cases.py   inputs of the op in every shape, its truth in float64, and errors against it
ranks.py   several ranks of a process group on one machine
"""
