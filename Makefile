# What people type. A target that runs something first makes `.venv` where it is missing, and brings it up to
# date where pyproject.toml or constraints.txt changed since.
#
#   make test ARGS="-k loss -x"        ARGS reaches the command
#   make test PYTHON=/opt/py/bin/python3.12    another interpreter for a new .venv

.DEFAULT_GOAL := help
.ONESHELL:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3 python3.12 python3.11
ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: quickstart
quickstart: $(INSTALLED) ## Fine-tune a small real model on film reviews, and see what it gained and forgot
	@exec $(BIN)/ift run jobs/quickstart.yaml $(ARGS)

.PHONY: experiment
experiment: $(INSTALLED) ## What is forgotten by the way it is taught: three seeds, about 35 minutes each
	@exec $(BIN)/python benchmarks/forgetting.py $(ARGS)

.PHONY: test
test: $(INSTALLED) ## All tests but the long ones, and the ten slowest
	@exec $(BIN)/python -m pytest -n 2 --dist loadfile -m "not long" --durations=10 $(ARGS)

.PHONY: test-long
test-long: $(INSTALLED) ## Faults injected into whole trainings, one after the other
	@exec $(BIN)/python -m pytest -m long $(ARGS)

.PHONY: test-fast
test-fast: $(INSTALLED) ## The tests without Ray and without the real model
	@exec $(BIN)/python -m pytest -m "not slow and not real and not long" $(ARGS)

.PHONY: bench
bench: $(INSTALLED) ## Benchmarks that two cores do in 20 minutes: one table, one JSON
	@exec $(BIN)/python benchmarks/run.py $(ARGS)

.PHONY: bench-long
bench-long: $(INSTALLED) ## The same in full: a million rows, whole trainings; some hours
	@exec $(BIN)/python benchmarks/run.py --size long $(ARGS)

.PHONY: bench-gpu
bench-gpu: $(INSTALLED) ## Training on one GPU, ours beside TRL
	@exec $(BIN)/python benchmarks/gpu/train.py --output build/benchmark/gpu.json $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## Ruff (rules and format) and mypy
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ift jobs

.PHONY: format
format: $(INSTALLED) ## Mend what ruff can mend, and format
	@$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: clean
clean: ## Remove caches and build output; keeps .venv, runs and the tracking database
	@rm -rf build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an installation that broke off is done again.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

$(BIN)/python:
	@python=
	for candidate in $(PYTHON); do
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
	    python=$$candidate
	    break
	  fi
	done
	if [[ -z $$python ]]; then
	  echo "ift needs Python 3.11 or 3.12; none of these is one: $(PYTHON)" >&2
	  echo "  Debian 12, Ubuntu 24.04:  sudo apt-get install python3 python3-venv" >&2
	  echo "  one that is elsewhere:    make PYTHON=/path/to/python3.12 ..." >&2
	  exit 1
	fi
	if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then
	  echo "Not found: python3-venv. On Debian and Ubuntu:  sudo apt-get install python3-venv" >&2
	  exit 1
	fi
	"$$python" -m venv --clear .venv
