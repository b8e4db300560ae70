# `make demo` or `make test` is all the set-up there is. Needs: make, Python 3.11 to 3.13.

# Which Python makes the environment: the first that TensorFlow has wheels for. Override: make test PYTHON=...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
    $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
    && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin

# PyTorch comes first and pinned. The default index serves CUDA builds (gigabytes) for Linux;
# for the CPU build: make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_SPEC ?= torch==2.13.0
TORCH_INDEX ?=

# More words for pytest: make test ARGS="tests/arrays -x". Where, for the targets that loop over backends: TESTS
ARGS ?=
TESTS ?= tests
BACKENDS ?= tensorflow jax torch
# Test files are shared out among so many processes. One at a time: make test WORKERS=0
WORKERS ?= 2
PYTEST := -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Seconds for each backend's slow tests: a part of every file's, another part at each commit. All: BUDGET=
BUDGET ?=
TURN := $(shell git rev-list --count HEAD 2>/dev/null || echo 0)
OTHER_BACKENDS = $(filter-out tensorflow,$(BACKENDS))

# Tests that give the same answer whatever the Keras backend run once, on TensorFlow. A new test file
# is run on every backend unless it is named here.
ONE_BACKEND := tests/arrays tests/benchmarks tests/reporting tests/runtimes/test_onnx.py tests/runtimes/test_tflm.py \
    tests/runtimes/test_vela.py tests/test_apart.py tests/test_architecture.py tests/test_artifact.py \
    tests/test_bad_files.py tests/test_choosing.py tests/test_cli_report.py tests/test_cli_sweep.py \
    tests/test_clusters.py tests/test_datasets.py tests/test_docs.py tests/test_examples.py \
    tests/test_exchanged_outputs.py tests/test_exporting_damage.py tests/test_firmware.py \
    tests/test_grids.py tests/test_interrupts.py tests/test_kills.py \
    tests/test_lab_recipes.py tests/test_mutated_inputs.py tests/test_onnx_export.py tests/test_outlook.py \
    tests/test_promises.py tests/test_readme.py tests/test_recipe.py tests/test_records.py tests/test_scoring.py tests/test_sources.py \
    tests/test_store.py tests/test_stripping.py tests/test_sweep_faults.py \
    tests/test_targets.py tests/test_testing.py

.DEFAULT_GOAL := help
.PHONY: help demo test lint check test-backends slow results results-check wheel clean
.DELETE_ON_ERROR:

help: ## This page
	@echo "Secateur: prune and quantize Keras 3 models, and measure the files that come out."
	@echo
	@echo "  make demo    on a fresh machine: installs TensorFlow, compresses a network, writes a report page"
	@echo "  make test    on a fresh machine: installs all three backends, runs the tests"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Variables: PYTHON=$(PYTHON)  VENV=$(VENV)  TORCH_SPEC=$(TORCH_SPEC)  TORCH_INDEX=$(TORCH_INDEX)"
	@echo "           BACKENDS=\"$(BACKENDS)\"  TESTS=$(TESTS)  ARGS=\"words for pytest\""
	@echo "PyTorch for the CPU: make test TORCH_INDEX=https://download.pytorch.org/whl/cpu"

# --- the environment: one .venv; a stamp in it says what has been installed --------------------------

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# What the demo needs is a part of what the tests need, so `make test` stamps both and neither undoes the other.
$(VENV)/.installed-demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[tensorflow,litert,report]'
	@touch $@

$(VENV)/.installed-all: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH_SPEC)'
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	@touch $(VENV)/.installed-demo $@

# --- what a newcomer runs --------------------------------------------------------------------------

demo: $(VENV)/.installed-demo ## Compress a network on the bundled digits, three seeds, in minutes
	KERAS_BACKEND=tensorflow $(BIN)/secateur run demo --seeds 3 --out demo-out --overwrite
	@echo "The report: demo-out/report.html"

test: $(VENV)/.installed-all ## The everyday tests and the docstrings' examples, on TensorFlow
	KERAS_BACKEND=tensorflow $(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

# --- what a contributor runs -----------------------------------------------------------------------

lint: $(VENV)/.installed-all ## Format, ruff, types, import layers (no tests)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

check: lint test ## Everything a commit must pass: lint, then test

test-backends: $(VENV)/.installed-all ## The tests that touch a backend on JAX and PyTorch, a process each
	@set -e; for backend in $(OTHER_BACKENDS); do \
	    echo "== KERAS_BACKEND=$$backend"; \
	    KERAS_BACKEND=$$backend $(BIN)/python $(PYTEST) $(TESTS) -m "not slow" $(ONE_BACKEND:%=--ignore=%) $(ARGS); \
	done

# pytest leaves with 5 when a backend has no slow test: that is no failure here
slow: $(VENV)/.installed-all ## The tests above ten seconds, on every backend; BUDGET=300: a part of each file's
	@set -e; for backend in $(BACKENDS); do \
	    echo "== KERAS_BACKEND=$$backend, slow"; \
	    ignored="$(ONE_BACKEND:%=--ignore=%)"; test $$backend != tensorflow || ignored=; \
	    KERAS_BACKEND=$$backend $(BIN)/python -m pytest $(TESTS) -m slow $$ignored \
	        $(if $(BUDGET),--budget $(BUDGET) --turn $(TURN)) $(ARGS) || test $$? -eq 5; \
	done

results: $(VENV)/.installed-all ## docs/results.md from the committed records of benchmarks/
	$(BIN)/python benchmarks/results.py --write

results-check: $(VENV)/.installed-all ## Is docs/results.md what those records say?
	$(BIN)/python benchmarks/results.py --check

wheel: $(VENV)/.installed-all ## Source archive and wheel into dist/
	$(BIN)/python -m build

clean: ## Caches, builds and the demo's output; the environment stays (rm -rf .venv)
	rm -rf build dist demo-out .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
