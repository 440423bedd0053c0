"""Shared by tests and benchmarks; the package itself does not import it.

cases.py   inputs of the op in every shape, its truth in float64, and errors against it
compiled.py, machine_code.py   every kernel compiled for GPUs that are not there, and what its code costs
ranks.py   several ranks of a process group on one machine
"""
