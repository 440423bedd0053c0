"""Evaluation: lm-eval with this package's models and tasks (``fla-mesa eval``), models side by side under one recipe (``fla-mesa
compare``), and what test-time compute buys (``fla-mesa sweep``).

    harness.py      the command line, over lm-eval's own
    lm.py           the model that lm-eval runs: HFLM with the solver's settings and two requests of our own
    tasks/          task files for lm-eval; sequence_task.py is the class behind most of them
    one_by_one.py   runs tasks one at a time, so that one that cannot run does not cost the others' results
    table.py        several checkpoints side by side
    cut.py          how many inputs were longer than the context
    fingerprint.py  what a model's answers depend on: the name of its cache
    checkpoint.py   is this a checkpoint, and what is it? devices.py: is this device there?
    solver.py       the settings of the conjugate gradients in a model's Mesa layers
    compare.py      trains and measures models alike; compare_settings.py are its flags, compare_cells.py its child processes,
                    compare_measure.py what they measure, report.py and report_plots.py what it leaves
    sweep.py        quality and speed against those settings

lm-eval comes with the extra ``eval``: ``pip install fla-mesa[eval]``.
"""
