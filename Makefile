# Two commands on a fresh machine: `make demo` and `make test`. Both need Python 3.11, make and a package registry.
PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# One thread a process, as a run sets it: the same bits on any machine, and no threads that wait for each other on busy cores.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
.DEFAULT_GOAL := help
.PHONY: help install demo test format lint types layers tests deep mutation benchmarks constraints clean

help: ## what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

.venv/core: pyproject.toml constraints.txt
	@echo "Setting up .venv (once; a minute or two)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "Python 3.11 is needed, found " + sys.version.split()[0])'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

.venv/dev: .venv/core
	@echo "Adding the tools for tests"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/pip check
	@touch $@

install: .venv/core ## .venv with the `concordant` command

demo: install ## simulate, run the pipeline, serve, ask for one patient
	@echo "1. The pipeline: simulated FHIR records to a verified bundle"
	@$(BIN)/concordant run glucose_lowering --workspace .demo
	@echo "2. One patient: KServe transformer and predictor on loopback, one question, one answer"
	@$(BIN)/concordant ask --start --workspace .demo

test: format lint types layers tests ## format, lint, types, layers, tests

format: .venv/dev
	@echo "format" && $(BIN)/ruff format --check .

lint: .venv/dev
	@echo "lint" && $(BIN)/ruff check .

types: .venv/dev
	@echo "types" && $(BIN)/mypy

layers: .venv/dev
	@echo "layers" && $(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

tests: .venv/dev
	@echo "tests: the fast ones, then the slow ones" && $(BIN)/pytest -q -m "not slow" --numprocesses 2 --dist loadgroup
	@$(BIN)/pytest -q -m slow --numprocesses 2 --dist loadgroup

deep: .venv/dev ## the property tests on their full number of cases (an hour)
	@CONCORDANT_DEEP=1 $(BIN)/pytest -q -m deep --numprocesses 2 --timeout 7200

mutation: .venv/dev ## mutation testing of safety.py and policy.py (an hour; tests/benchmarks/mutation.py --sample N for some)
	@PYTHONPATH=.:tests/benchmarks $(BIN)/python tests/benchmarks/mutation.py

benchmarks: .venv/dev ## the quick ones (ten minutes): features, ingest, store, abstention; each writes its section of tests/benchmarks/RESULTS.md
	@for name in line ingest store abstention; do $(BIN)/python -W ignore tests/benchmarks/$$name.py || exit 1; done
	@$(BIN)/python tests/benchmarks/effects.py

constraints: .venv/dev ## constraints.txt from what is installed
	@{ echo '# Exact versions of everything that `make install` and `make test` put into .venv. Made by: make constraints'; \
	   $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.new && mv constraints.new constraints.txt

clean: ## remove .venv and the demo's workspace
	@rm -rf .venv .demo
