"""The notebook runs, and what is stored of its outputs is of its cells."""

import runpy

import pytest

from tests.project import ROOT

pytest.importorskip("nbclient", reason="needs the extra `docs`: make test-docs")
DOCS = runpy.run_path(str(ROOT / "docs" / "run_notebook.py"))


def test_it_runs(monkeypatch):
    """With four steps of training in place of 400."""
    monkeypatch.setenv("STEPS", "4")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    now = DOCS["executed"]()
    stored = DOCS["nbformat"].read(DOCS["NOTEBOOK"], as_version=4)
    kinds = [[output.output_type for output in cell.get("outputs", [])] for cell in now.cells]
    assert sum(map(len, kinds)) >= 6
    for cell, there in zip(now.cells, stored.cells, strict=True):
        if cell.cell_type == "code":
            made, kept = ({output.output_type for output in each.outputs} for each in (cell, there))
            assert made == kept, cell.source


def test_no_path_of_a_machine_is_stored():
    text = DOCS["NOTEBOOK"].read_text()
    assert "/tmp" not in text and "/home" not in text and "site-packages" not in text
