# Each target does everything, from creating the environment to the result. PYTHON chooses the interpreter (3.10 to 3.13).
PYTHON ?= python3
# Where the environment lies and which versions are in it.
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
# Tests run one process per core; waiting threads must not spin against each other.
QUIET := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive HF_HUB_OFFLINE=1

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
OR_SAY = || { echo "make: pip could not install what $@ needs; its reason is above. Without a network, name a folder of wheels:" \
	"PIP_NO_INDEX=1 PIP_FIND_LINKS=/folder make ..." >&2; exit 1; }

# As another processor would round, in float32 sums above all: PyTorch's own kernels, MKL, oneDNN, numpy's OpenBLAS without wide vectors.
OTHER_ROUNDING := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem
# The tests that compute; the kernels' static tables, in tests/ops, only compile.
NUMERICAL := tests/ops tests/cpu tests/models tests/train/test_recall.py tests/train/test_figures.py tests/eval/test_scores.py
# The Triton that the CUDA build of the torch in constraints.txt asks for, where `make test` beside a CPU build takes the newest.
TRITON_OF_TORCH := $(VENV)/triton-of-torch

.PHONY: demo test test-oldest test-newest test-rounding test-triton test-docs integrations coverage lint docs links dist checkpoints clean

demo: $(VENV)/demo
	$(BIN)/fla-mesa demo --output_dir runs/demo

test: $(VENV)/test
	$(QUIET) $(BIN)/python -m pytest -n auto tests
	$(QUIET) TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto tests/interpreter

# The oldest versions that pyproject.toml allows, and the newest, each in an environment of its own.
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=/dev/null

test-rounding: $(VENV)/test
	$(QUIET) $(OTHER_ROUNDING) $(BIN)/python -m pytest -n auto --ignore tests/ops/test_kernels_static.py $(NUMERICAL)

# PYTHONPATH comes before what is installed in the environment.
test-triton: $(VENV)/test $(TRITON_OF_TORCH)
	$(QUIET) PYTHONPATH=$(TRITON_OF_TORCH) $(BIN)/python -m pytest -n auto tests/ops/test_kernels_static.py
	$(QUIET) PYTHONPATH=$(TRITON_OF_TORCH) TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto tests/interpreter

# The models under other trainers. `make test` skips these tests where the trainers are not installed.
integrations: $(VENV)/integrations
	$(QUIET) $(BIN)/python -m pytest tests/integrations

# What the pages of docs/ tell the reader to type, and the notebook. `make test` skips these where mkdocs is not installed.
test-docs: $(VENV)/test $(VENV)/docs
	$(QUIET) $(BIN)/python -m pytest -n auto tests/test_docs.py tests/test_notebook.py

# How much of the package the tests run through, in this process and in those that they start. The floor is the last figure that CI
# measured, rounded down: it may only rise.
COVERAGE_FLOOR ?= 92
coverage: $(VENV)/test
	$(QUIET) $(BIN)/python -m pytest -n auto --cov --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE_FLOOR) tests

# The site, in site/, from docs/ and docstrings. A warning, such as a link to nowhere, is an error.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Links to other sites, of README and the pages. Not a part of CI: it needs a network, and says "Connection failed" where there is none.
links: $(VENV)/lint
	$(BIN)/lychee --no-progress --scheme https --scheme http README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md docs benchmarks/results

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --venvpath . fla_mesa

# What is uploaded to a package index: dist/*.whl and dist/*.tar.gz, the wheel built from the latter.
dist: $(VENV)/dist
	rm -rf dist
	$(BIN)/python -m build --no-isolation

# The models of a comparison as files of a release: make checkpoints COMPARISON=runs/paper-text
COMPARISON ?= runs/demo
checkpoints: $(VENV)/demo
	$(BIN)/python benchmarks/pack_checkpoints.py $(COMPARISON) --output_dir dist/checkpoints

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "make: there is no $(PYTHON) here. PYTHON names another: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: fla_mesa needs Python 3.10 or newer; $(PYTHON) is" $$("$(PYTHON)" -V 2>&1). \
		"PYTHON names another: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# An environment is made anew when what it is made from changes. torch comes first: its pinned version decides the build.
$(VENV)/demo: $(BIN)/python pyproject.toml $(wildcard $(CONSTRAINTS))
	$(INSTALL) torch $(OR_SAY)
	$(INSTALL) -e . $(OR_SAY)
	touch $@

$(VENV)/test: $(VENV)/demo
	$(INSTALL) -e '.[eval,test]' $(OR_SAY)
	touch $@

$(VENV)/integrations: $(VENV)/test
	DS_BUILD_OPS=0 $(INSTALL) -e '.[eval,test,integrations]' $(OR_SAY)
	touch $@

# The type checker reads what the package imports, lm-eval and pytest among it.
$(VENV)/lint: $(VENV)/test
	$(INSTALL) -e '.[eval,test,lint]' $(OR_SAY)
	touch $@

$(VENV)/docs: $(VENV)/demo
	$(INSTALL) -e '.[docs]' $(OR_SAY)
	touch $@

# Neither torch nor anything else of the package is needed to pack it.
$(VENV)/dist: $(BIN)/python pyproject.toml $(wildcard $(CONSTRAINTS))
	$(INSTALL) build hatchling $(OR_SAY)
	touch $@

$(TRITON_OF_TORCH): $(VENV)/test
	rm -rf $@
	$(INSTALL) --no-deps --target $@ "$$($(BIN)/python benchmarks/triton_of_torch.py)" $(OR_SAY)
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest runs dist site
