# Everything a checkout needs: `make demo` and `make test` work on a machine that has Python 3.11 or newer and nothing else.
# Each target installs what it uses into .venv, at the versions of constraints.txt, once per change of the two files below.

PYTHON ?= python3
PYTEST_WORKERS ?= 2

VENV := .venv
LOWEST := .venv-lowest
NEWEST := .venv-newest
NEWEST_PYTHON ?= 3.13
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INPUTS := pyproject.toml constraints.txt
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lowest newest lint format types docs bench build constraints clean

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "bcnmf_sc needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# the package, its extras and the tests' tools
$(RUNTIME): $(INPUTS) | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[all,test]'
	@touch $@

# lint, types, docs and release tools on top
$(DEV): $(RUNTIME)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[all,test,docs,dev]'
	@touch $@

demo: $(RUNTIME)  ## fit NMF and bcNMF to the bundled data: a table, demo.h5ad, figures, a report to open
	$(BIN)/bcnmf-sc demo $(DEMO_ARGS)

# the package's doctests and the tests in one run; a worker is one process, so its libraries get one thread each
test: $(RUNTIME)  ## run all tests and doctests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --doctest-modules bcnmf_sc tests $(COVERAGE) $(PYTEST_ARGS)

coverage: COVERAGE := --cov --cov-report=term --cov-report=xml
coverage: test  ## the same with branch coverage

# what old and new versions of others warn of among themselves is not for us to mend; real data are left to `make test`
lowest: $(DEV)  ## the tests with the oldest versions that pyproject.toml allows, in an environment of its own
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct --editable '.[all,test]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n $(PYTEST_WORKERS) -m 'not data and not gpu and not internet' \
		-W ignore::DeprecationWarning -W ignore::FutureWarning $(PYTEST_ARGS)

newest: $(DEV)  ## the tests with the newest versions that there are, on NEWEST_PYTHON, in an environment of its own
	$(BIN)/uv venv --quiet --clear --python $(NEWEST_PYTHON) $(NEWEST)
	$(BIN)/uv pip install --quiet --python $(NEWEST) --editable '.[all,test]'
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n $(PYTEST_WORKERS) -m 'not data and not gpu and not internet' $(PYTEST_ARGS)

lint: $(DEV)  ## ruff and zizmor, check only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/zizmor --offline --quiet .

format: $(DEV)  ## ruff, repair
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(DEV)  ## mypy, strict on the engine
	$(BIN)/mypy

docs: $(DEV)  ## build the documentation into docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(RUNTIME)  ## run every benchmark script; each prints both sides of its comparison
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

build: $(DEV)  ## wheel and sdist into dist/, checked
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

constraints:  ## renew constraints.txt: the newest versions, as a fresh environment gets them (Python 3.11)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "needs Python 3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet --editable '.[all,test,docs,dev]'
	$(BIN)/uv pip freeze --python $(VENV) --exclude-editable | sed -E 's/\+[a-z0-9]+$$//; /^(pip|nvidia|cuda|triton)/d' > constraints.txt

clean:  ## remove the environments and everything that was built
	rm -rf $(VENV) $(LOWEST) $(NEWEST) build dist docs/_build docs/generated docs/tutorials htmlcov .coverage .coverage.* coverage.xml \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
