# `make demo` and `make test` work as the first command in a clean clone; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
BENCHES := $(patsubst benchmarks/bench_%.py,%,$(wildcard benchmarks/bench_*.py))

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench torture clean $(addprefix bench-,$(BENCHES))

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/.ready ## the virtual environment with everything installed

.venv/.ready: pyproject.toml constraints.txt
	@command -v g++ >/dev/null || { echo "g++ is missing (DeepSpeed compiles with it): install the package g++"; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 with venv, or say make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/.ready ## the whole pipeline on the embedded default, in minutes on a CPU
	@$(BIN)/ppt demo

test: .venv/.ready ## the tests, two files at a time, with line coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered

lint: .venv/.ready ## formatter, linter and type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

torture: .venv/.ready ## long kill runs
	$(BIN)/python -m pytest -m torture --timeout=3600

bench: $(addprefix bench-,$(BENCHES)) ## every benchmark; bench-NAME for one

$(addprefix bench-,$(BENCHES)): bench-%: .venv/.ready
	$(BIN)/python benchmarks/bench_$*.py

clean: ## remove the virtual environment and caches (runs/ stays)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
