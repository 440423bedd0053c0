"""Evaluation of checkpoints, and comparisons.

``fla-mesa eval`` is lm-eval with this package's models and tasks, ``fla-mesa compare`` sets models side by side under one recipe, and
``fla-mesa sweep`` shows what test-time compute buys.

    harness/        lm-eval: its flags, this package's model and tasks, several checkpoints side by side
    checkpoint.py   is this a checkpoint, and what is it? devices.py: is this device there?
    measure/        every figure of one model, computed in one place
    compare/        trains and measures models alike: plan, cells, columns, report
    sweep/          quality and speed against the settings of the solver; inspect/: what its layers hold

lm-eval comes with the extra ``eval``: ``pip install fla-mesa[eval]``.
"""
