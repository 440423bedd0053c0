# Each target does everything, from creating .venv to the result. PYTHON chooses the interpreter (>= 3.10).
PYTHON ?= python3
BIN := .venv/bin
# Tests run one process per core; waiting threads must not spin against each other.
QUIET := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive HF_HUB_OFFLINE=1

# As another processor would round, in float32 sums above all: PyTorch's own kernels, MKL, oneDNN, numpy's OpenBLAS without wide vectors.
OTHER_ROUNDING := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem
# The tests that compute; the kernels' static tables, in tests/ops, only compile.
NUMERICAL := tests/ops tests/cpu tests/models tests/train/test_recall.py tests/train/test_figures.py tests/eval/test_scores.py
# The Triton that the CUDA build of the torch in constraints.txt asks for, where `make test` beside a CPU build takes the newest.
TRITON_OF_TORCH := .venv/triton-of-torch

.PHONY: demo test test-rounding test-triton integrations lint clean

demo: .venv/demo
	$(BIN)/fla-mesa demo --output_dir runs/demo

test: .venv/test
	$(QUIET) $(BIN)/python -m pytest -n auto tests
	$(QUIET) TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto tests/interpreter

test-rounding: .venv/test
	$(QUIET) $(OTHER_ROUNDING) $(BIN)/python -m pytest -n auto --ignore tests/ops/test_kernels_static.py $(NUMERICAL)

# PYTHONPATH comes before what is installed in .venv.
test-triton: .venv/test $(TRITON_OF_TORCH)
	$(QUIET) PYTHONPATH=$(TRITON_OF_TORCH) $(BIN)/python -m pytest -n auto tests/ops/test_kernels_static.py
	$(QUIET) PYTHONPATH=$(TRITON_OF_TORCH) TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto tests/interpreter

# The models under other trainers. `make test` skips these tests where the trainers are not installed.
integrations: .venv/integrations
	$(QUIET) $(BIN)/python -m pytest tests/integrations

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

.venv/integrations: .venv/test
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[eval,test,integrations]'
	touch $@

# The type checker reads what the package imports, lm-eval and pytest among it.
.venv/lint: .venv/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[eval,test,lint]'
	touch $@

$(TRITON_OF_TORCH): .venv/test
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ triton==$$($(BIN)/python benchmarks/triton_of_torch.py)
	touch $@

clean:
	rm -rf .venv runs
