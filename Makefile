# The first two targets are all a newcomer needs; each makes the environment if it is not there.
VENV ?= .venv
PYTHON ?= python3
# The version CI runs. Any later one should do: make TORCH=torch setup
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test setup format lint check test-gpu bench docs build

quickstart: $(STAMP)  ## train the embedded model on generated problems, about five minutes on two cores
	$(BIN)/profit quickstart --output_dir runs/quickstart --overwrite_output_dir

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest

setup: $(STAMP)

# torch first, by itself: resolved together with the rest, an open range may fetch another build of it.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(STAMP)

format: $(STAMP)
	$(BIN)/ruff check --fix src tests benchmarks docs
	$(BIN)/ruff format src tests benchmarks docs

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy

check: lint test

test-gpu: $(STAMP)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

bench: $(STAMP)  ## the loss against its peers, on real hidden states
	$(BIN)/python benchmarks/loss.py

docs: $(STAMP)  ## the reference pages that are generated from the code
	$(BIN)/python docs/generate.py

build: $(STAMP)
	$(BIN)/python -m build
