"""Evaluation of checkpoints, and comparisons.

``fla-mesa eval`` is lm-eval with this package's models and tasks, ``fla-mesa compare`` sets models side by side under one recipe, and
``fla-mesa sweep`` shows what test-time compute buys.

    harness/        lm-eval: its flags, this package's model and tasks, several checkpoints side by side
    measure/        every figure of one model, computed in one place
    compare/        trains and measures models alike: plan, cells, columns, report
    sweep/          quality and speed against the settings of the solver; inspect/: what its layers hold

What their reports are made of is in `fla_mesa.report`; checkpoints are opened by `fla_mesa.models.checkpoint`.

lm-eval comes with the extra ``eval``: ``pip install fla-mesa[eval]``.
"""
