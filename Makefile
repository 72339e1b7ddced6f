# Every target sets up what it needs in .venv; python3 (3.11 or newer), make and a C++ compiler are all it expects.
PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= 2
ARGS ?=
BENCH ?= roofline message_passing

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test lint format bench docs clean
.SECONDARY:

help:
	@echo "make demo    build a zoo of digit INRs, train metanetworks on it, write runs/demo/index.html"
	@echo "make test    run the test suite (WORKERS=$(WORKERS) processes)"
	@echo "make lint    ruff and pyright on the package and its tests"
	@echo "make bench   run benchmarks (BENCH=\"$(BENCH)\"), results under benchmarks/results"
	@echo "make docs    build the documentation into site/, warnings are errors"

demo: $(VENV)/.installed-cli
	@$(BIN)/weightspace demo $(ARGS)

test: $(VENV)/.installed-test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check weightspace tests benchmarks examples
	@$(BIN)/ruff format --check weightspace tests benchmarks examples
	@$(BIN)/pyright --stats

format: $(VENV)/.installed-dev
	@$(BIN)/ruff check --fix weightspace tests benchmarks examples
	@$(BIN)/ruff format weightspace tests benchmarks examples

bench: $(VENV)/.installed-test
	@set -e; for name in $(BENCH); do echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py $(ARGS); done

docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis *.egg-info

# torch goes first and by its own line, so that a build without CUDA that is at hand satisfies the package's range.
$(VENV)/.installed-torch:
	@echo "Setting up $(VENV): $(TORCH) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/.installed-%: pyproject.toml $(VENV)/.installed-torch
	@echo "Installing weightspace[$*] into $(VENV)"
	@$(PIP) --editable '.[$*]'
	@touch $@
