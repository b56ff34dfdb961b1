# PYTHON makes the environment, VENV is where: make test PYTHON=python3.11 VENV=/tmp/venv
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo notebook test newcomer check lint types docs lock audit sbom clean

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

# Tools for the supply chain, in an environment of their own: svitc does not need them.
SUPPLY := build/supply/bin

$(SUPPLY)/.ready: Makefile
	@$(PYTHON) -m venv build/supply
	@$(SUPPLY)/python -m pip install -qq --disable-pip-version-check uv==0.13.9 pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@

lock: $(SUPPLY)/.ready ## write requirements.lock anew: the hashes of the versions in constraints.txt
	@{ echo "# The SHA-256 of every file on PyPI of the versions in constraints.txt; written by make lock (SECURITY.md)."; \
	  echo "# PyTorch is left out: its builds of one version differ from index to index."; \
	  grep -vE '^torch(vision|audio)?==' constraints.txt | $(SUPPLY)/uv pip compile - --quiet --no-deps --universal \
	  --python-version 3.11 --generate-hashes --no-annotate --no-header; } > build/requirements.lock
	@mv build/requirements.lock requirements.lock

# --strict: a version that the database does not know, or cannot be asked about, is no pass.
audit: $(SUPPLY)/.ready ## look up known weaknesses of the versions in requirements.lock and of PyTorch
	@$(SUPPLY)/pip-audit --strict --disable-pip --require-hashes -r requirements.lock
	@grep -E '^torch(vision|audio)?==' constraints.txt > build/torch.txt
	@$(SUPPLY)/pip-audit --strict --disable-pip --no-deps -r build/torch.txt

sbom: $(SUPPLY)/.ready ## write dist/svitc.cdx.json: a bill of materials of requirements.lock and PyTorch, in CycloneDX
	@mkdir -p dist
	@{ cat requirements.lock; grep -E '^torch(vision|audio)?==' constraints.txt; } > build/all.txt
	@$(SUPPLY)/cyclonedx-py requirements build/all.txt --output-reproducible --of JSON -o dist/svitc.cdx.json
	@echo "wrote dist/svitc.cdx.json"

clean: ## remove the environment, caches and outputs
	@rm -rf .venv build dist *.egg-info demo/out demo/out.sweep.jsonl demo/digits-*.npz svitc-out
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +
	@echo "clean"
