# Every target makes the virtual environment when it is missing or older than its description.
VENV ?= .venv
PYTHON ?= python3
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# a worker per core, one thread each; slow tests of one file share what they made
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8

.PHONY: help setup quickstart test test-slow test-vllm lint bench clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## Make the virtual environment and install the toolkit into it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(READY) ## Train a small reasoning model on this CPU and show the improvement (10 minutes; FULL=1: 20)
	$(BIN)/python -m recipes.quickstart.run $(if $(FULL),--full) $(ARGS)

test: $(READY) ## The fast tests
	$(PYTEST) --dist worksteal

test-slow: $(READY) ## The slow tests: killed processes, several ranks, parity with TRL, a real browser
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m slow

test-vllm: $(READY) $(VLLM_VENV)/.ready ## The tests against real vLLM servers, from an environment of their own
	VLLM_PYTHON=$(abspath $(VLLM_VENV)/bin/python) $(BIN)/python -m pytest -m vllm

$(VLLM_VENV)/.ready: .ci/make_vllm_env pyproject.toml
	.ci/make_vllm_env $(VLLM_VENV) $(PYTHON)
	$(VLLM_VENV)/bin/uv pip install -q --python $(VLLM_VENV)/bin/python -e . pytest
	@touch $@

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## The side-by-side benchmarks of docs/performance.md (a quiet machine, about 50 minutes)
	$(BIN)/python -m benchmarks

clean: ## Remove the virtual environments and caches (runs/ stays)
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .ruff_cache .mypy_cache *.egg-info
