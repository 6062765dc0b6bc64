# What this repository can do. Every target installs what it lacks first; see scripts/setup.sh.

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long lint format bench clean

PYTHON_IN_VENV := .venv/bin/python
PYTEST := $(PYTHON_IN_VENV) -m pytest -n auto

# More arguments for pytest or the benchmark: make test ARGS='-k whiteout'
ARGS ?=

help:
	@echo 'make demo       an image built, changed, saved, loaded and run again, step by step'
	@echo 'make test       the tests (ARGS= for pytest)'
	@echo 'make test-long  the tests, those that take more than ten seconds each too'
	@echo 'make lint       ruff, import-linter, mypy'
	@echo 'make format     let ruff put the code in order'
	@echo 'make bench      lamina beside fuse-overlayfs, kernel overlayfs and a plain directory'
	@echo 'make setup      only install what the above need'
	@echo 'make clean      remove .venv and all caches'

setup:
	@scripts/setup.sh test

demo:
	@scripts/setup.sh demo
	@scripts/demo.sh

test:
	@scripts/setup.sh test
	@$(PYTEST) -m 'not slow' $(ARGS)

test-long:
	@scripts/setup.sh test
	@$(PYTEST) $(ARGS)

lint:
	@scripts/setup.sh lint
	@$(PYTHON_IN_VENV) -m ruff check .
	@$(PYTHON_IN_VENV) -m ruff format --check .
	@.venv/bin/lint-imports
	@$(PYTHON_IN_VENV) -m mypy

format:
	@scripts/setup.sh lint
	@$(PYTHON_IN_VENV) -m ruff check --fix .
	@$(PYTHON_IN_VENV) -m ruff format .

bench:
	@scripts/setup.sh test
	@$(PYTHON_IN_VENV) -m bench.run $(ARGS)

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
