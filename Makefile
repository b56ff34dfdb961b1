# PYTHON makes the environment, VENV is where: make test PYTHON=python3.11 VENV=/tmp/venv
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo notebook test newcomer check lint types docs clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(READY) ## create the environment with the versions in constraints.txt
	@echo "$(VENV) is ready"

# torch first, at its exact version: a range may resolve to a CUDA build of several gigabytes.
$(READY): setup.cfg constraints.txt
	@echo "== environment in $(VENV), once; takes a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $$(grep '^torch==' constraints.txt)
	@$(PIP) -e '.[dev,docs]'
	@touch $@

demo: $(READY) ## compile the digits model to a budget and verify what was written
	@$(BIN)/python demo/make_data.py
	@echo "== svitc inspect"
	@$(BIN)/svitc inspect demo/digits.pt
	@echo "== svitc compile"
	@$(BIN)/svitc compile demo/digits.pt --budget 0.3 -o demo/out --data demo/digits-test.npz --train-data demo/digits-train.npz
	@echo "== svitc verify"
	@$(BIN)/svitc verify demo/out

notebook: $(READY) ## execute the notebook and store its outputs
	@$(BIN)/python examples/execute.py examples/quickstart.ipynb

# One thread per test process; tests of a file mostly stay together, since they share what they build.
# Not `python -m pytest`, which would put the root on sys.path.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal

test: lint docs ## lint, check types, build the site and run the tests
	@echo "== pytest"
	@$(PYTEST)

newcomer: $(READY) ## run the README's commands from a fresh wheel, as a newcomer does
	@SVITC_NEWCOMER=1 $(BIN)/pytest -q tests/package/test_newcomer.py --durations=3

check: lint ## for daily work: lint, check types and run a tenth of the tests
	@echo "== pytest --quick"
	@$(PYTEST) --quick

lint: $(READY) types ## ruff, mypy and the order of imports
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== import-linter"
	@PYTHONPATH=build/types $(BIN)/lint-imports

docs: $(READY) types ## build the documentation into build/site; a broken link is an error
	@echo "== mkdocs"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# mypy, import-linter and mkdocstrings need the package as one folder: links to the contents of the three.
types:
	@rm -rf build/types
	@mkdir -p build/types/svitc
	@ln -s "$(CURDIR)"/compiler/* "$(CURDIR)/passes" "$(CURDIR)/frontends" build/types/svitc/

clean: ## remove the environment, caches and outputs
	@rm -rf .venv build dist *.egg-info demo/out demo/out.sweep.jsonl demo/digits-*.npz svitc-out
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +
	@echo "clean"
