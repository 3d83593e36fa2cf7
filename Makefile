# Two commands: `make reproduce` and `make test`. Everything else is a variation of them.
EXPERIMENT ?= quick
override EXPERIMENT := $(value EXPERIMENT)
FROM ?=
override FROM := $(value FROM)
CORES ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
PYTHON ?= python3
BIN := .venv/bin
export DVC_NO_ANALYTICS = 1
export EXPERIMENT CORES FROM # the shell gets values as words of its environment, never as text of a command
export PATH := $(CURDIR)/$(BIN):$(PATH)

ifneq ($(word 2,$(MAKECMDGOALS)),)
ifneq ($(filter reproduce pull,$(firstword $(MAKECMDGOALS))),)
$(error one experiment at a time, as in `make $(firstword $(MAKECMDGOALS)) EXPERIMENT=$(word 2,$(MAKECMDGOALS))`)
endif
endif

.PHONY: reproduce pull test test-slow test-faults examples docs notebooks catalogue format benchmarks install

reproduce: .venv/installed
	@$(BIN)/python workflow_scripts/reproduce.py "$$EXPERIMENT" --cores "$$CORES"

pull: .venv/installed
	@$(BIN)/python workflow_scripts/pull.py "$$EXPERIMENT" $${FROM:+--from="$$FROM"}

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "precfm: Python %d.%d found; 3.11, 3.12 or 3.13 is needed (make PYTHON=python3.12 ...)" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n "$$CORES" --dist loadgroup

test-slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slow and not faults"

test-faults: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m faults

# What the examples need beside precfm, so that their tests run.
examples: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r examples/requirements.txt

# The documentation in site/, without a request to the network.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

# The outputs of the tutorials.
notebooks: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python docs/_site/notebooks.py

# docs/catalogue.md and README's table of it, after a change of configurations, tables, figures or published results.
catalogue: .venv/installed
	$(BIN)/python docs/_site/catalogue.py

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

benchmarks: .venv/installed
	$(BIN)/python benchmarks/pipeline.py "$$EXPERIMENT"
