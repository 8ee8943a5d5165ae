# Every target sets up what it needs in .venv and can be run first on a fresh machine that has only Python 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
WORKERS ?= 2

# One pin file for everything, build requirements included, so that torch is never resolved elsewhere.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_OFFLINE ?= 1

CORE := $(VENV)/.installed-core
DEV  := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs

.PHONY: help demo test test-all check format bench docs clean

help:
	@echo "make demo      search, label and de-duplicate a folder of pictures; writes demo/report.html"
	@echo "make test      the fast tests            make test-all  all tests"
	@echo "make check     style and types           make format    mend the style"
	@echo "make bench     speeds beside the peers   make docs      the documentation, in site/"
	@echo "make clean     remove what these made"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(CORE): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet "torch==2.13.0"
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(DEV): $(CORE) requirements-oracles.txt
	$(BIN)/pip install --quiet --editable ".[dev,fast,train]"
	$(BIN)/pip install --quiet --no-deps -r requirements-oracles.txt
	@touch $@

$(DOCS): $(CORE)
	$(BIN)/pip install --quiet --editable ".[docs]"
	@touch $@

demo: $(CORE)
	$(BIN)/python -m sightline.app.demo --out demo

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"

test-all: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)
	PYTHONPATH=tests $(BIN)/sightline bench embed
	$(BIN)/sightline bench folder
	$(BIN)/sightline bench search --n 1000000
	PYTHONPATH=tests $(BIN)/sightline bench train
	$(BIN)/sightline bench world

docs: $(DOCS)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo site dist .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
