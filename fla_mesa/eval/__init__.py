"""Evaluation: lm-eval with this package's models and tasks (``fla-mesa eval``), models side by side under one recipe (``fla-mesa
compare``), and what test-time compute buys (``fla-mesa sweep``).

    harness/        lm-eval: its flags, this package's model and tasks, several checkpoints side by side
    checkpoint.py   is this a checkpoint, and what is it? devices.py: is this device there?
    solver.py       the settings of the conjugate gradients in a model's Mesa layers
    compare.py      trains and measures models alike; compare_settings.py are its flags, compare_cells.py its child processes,
                    compare_measure.py what they measure, report.py and report_plots.py what it leaves
    sweep.py        quality and speed against those settings

lm-eval comes with the extra ``eval``: ``pip install fla-mesa[eval]``.
"""
