# make demo     the guided tour, in an environment of its own: a few minutes after installation
# make test     everything a change must pass, in the same environment
# make lint     ... without the tests
# make format   mend what ruff can mend
# make test-slow  the tests that take minutes

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PACKAGE := $(VENV)/.package
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow lint format clean

demo: $(PACKAGE)
	$(BIN)/siglip2-cache demo

test: lint
	$(BIN)/pytest -m "not slow" --numprocesses=auto --maxprocesses=4 --dist=loadfile

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The package with what it needs to run. setuptools comes first and builds without isolation, so that it
# too is the pinned one.
$(PACKAGE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e .
	touch $@

# What tests and benchmarks need beside it.
$(INSTALLED): $(PACKAGE)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[test,bench]'
	touch $@

clean:
	rm -rf .venv siglip2-cache-demo build dist *.egg-info .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
