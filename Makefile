# Everything runs in .venv, made on first use. PYTHON picks the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all bare lint bench docs claims clean

demo: .venv/core
	$(BIN)/python examples/demo.py

test: .venv/dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: .venv/dev
	$(BIN)/python -m pytest -n 2

bare: .venv/dev
	bash tests/bare.sh

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/dev
	$(BIN)/python bench/run.py

docs: .venv/core
	$(BIN)/python docs/generate.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/core: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/dev: .venv/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .bench runs
