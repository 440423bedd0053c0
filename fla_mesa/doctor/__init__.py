"""``fla-mesa doctor``: checks and times every back end of the op on this machine.

command.py         the command: a worker for each back end, then the report
worker.py          one back end in a process of its own, which may crash
checks.py          what is checked
configurations.py  every configuration of the kernels that autotuning may choose
truth.py           inputs, and the definition's results for them in float64
timing.py          time and memory, beside fla's ops
report.py          the table, the verdicts and what to use
"""
