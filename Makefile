# make demo     the guided tour, in an environment of its own: a few minutes after installation
# make test     everything a change must pass, in the same environment
# make lint     ... without the tests
# make format   mend what ruff can mend
# make test-slow  the tests that take minutes
# make docs     the documents as a site, in build/site
# make test-wheel  builds wheel and sdist, and tries them on each Python with the newest and the oldest dependencies

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PACKAGE := $(VENV)/.package
INSTALLED := $(VENV)/.installed
DOCS := $(VENV)/.docs
DIST := $(VENV)/.dist
PYTHONS ?= 3.11 3.12 3.13

.PHONY: demo test pytest test-slow test-wheel docs lint format clean

demo: $(PACKAGE)
	$(BIN)/siglip2-cache demo

# Lint beside the tests, and one process of tests more than there are cores: some tests wait. Files in their own
# order: integration tests, of which a file may take a minute, come first.
test: $(INSTALLED)
	$(MAKE) --jobs=2 lint pytest

pytest: $(INSTALLED)
	$(BIN)/pytest -m "not slow" --dist=loadfile --no-loadscope-reorder \
		--numprocesses=$$($(BIN)/python -c 'import os; print(min(os.cpu_count() + 1, 4))')

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "the site is at build/site/index.html"

# Each environment takes some GB.
test-wheel: $(DIST)
	UV=$(BIN)/uv .ci/test-wheel $(PYTHONS)

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

$(DOCS): $(PACKAGE)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[docs]'
	touch $@

$(DIST): $(PACKAGE)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dist]'
	touch $@

clean:
	rm -rf .venv siglip2-cache-demo build dist *.egg-info .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
