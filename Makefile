# Each target does everything, from creating .venv to the result. PYTHON chooses the interpreter (>= 3.10).
PYTHON ?= python3
BIN := .venv/bin
# Tests run one process per core; waiting threads must not spin against each other.
QUIET := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive HF_HUB_OFFLINE=1

.PHONY: demo test lint clean

demo: .venv/demo
	$(BIN)/fla-mesa demo --output_dir runs/demo

test: .venv/test
	$(QUIET) $(BIN)/python -m pytest -n auto tests
	$(QUIET) TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto tests/interpreter

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --venvpath . fla_mesa

.venv/bin/python:
	$(PYTHON) -m venv .venv

# An environment is made anew when what it is made from changes. torch comes first: its pinned version decides the build.
.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/test: .venv/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[eval,test]'
	touch $@

# The type checker reads what the package imports, lm-eval among it.
.venv/lint: .venv/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[eval,lint]'
	touch $@

clean:
	rm -rf .venv runs
