# The first two targets are all a newcomer needs; each makes the environment if it is not there.
VENV ?= .venv
PYTHON ?= python3
# The version CI runs. Any later one should do: make TORCH=torch setup
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
NEEDS_CUDA := $(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit(f'torch {torch.__version__} finds no CUDA device')"
LOWEST := $(VENV)-lowest
# In place of the declared bound, where its build for CPUs is not to be had: make LOWEST_TORCH=torch==2.13.0 test-lowest
LOWEST_TORCH ?=
# A trainer that others use: llamafactory, ms-swift or axolotl. Its environment is its own.
PEER ?= llamafactory
PEER_VENV ?= $(VENV)-$(PEER)
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-whole setup format lint check test-gpu test-lowest test-peer bench bench-gpu docs build

quickstart: $(STAMP)  ## train the embedded model on generated problems, about five minutes on two cores
	$(BIN)/profit quickstart --output_dir runs/quickstart --overwrite_output_dir

# Two processes of one thread each: on two cores that takes half of the time of one process. Files are begun in the order
# of tests/conftest.py, the slow ones first, and not by their number of tests.
test: $(STAMP)  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-whole: $(STAMP)  ## tables that `test` samples, hours on two cores: kills, full disks, rows, settings, models, engines, the loss
	PROFIT_TESTS=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults tests/distributed tests/evaluation \
		tests/loss tests/train/test_trainer_moe.py

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

test-gpu: $(STAMP)  ## the table of the loss, the head and one trainer step, on a CUDA device
	$(NEEDS_CUDA)
	$(BIN)/python -m pytest -m gpu tests/loss tests/test_gpu.py

test-lowest: $(LOWEST)/.installed  ## loss, head and trainer on the lowest versions that pyproject.toml declares
	$(LOWEST)/bin/python -m pytest -W default -m "not slow" tests/loss tests/test_head*.py tests/test_padding.py tests/test_objectives.py \
		tests/integrations tests/train/test_trainer.py

$(LOWEST)/.installed: pyproject.toml tests/lowest_versions.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet pytest
	$(LOWEST)/bin/python tests/lowest_versions.py $(LOWEST)/constraints.txt $(LOWEST_TORCH)
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt torch
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt -e ".[train]"
	touch $@

# Its packages are named one by one, since what they declare would bring builds of torch that do not load on CPUs.
test-peer: $(PEER_VENV)/.installed  ## the loss in a trainer that is really installed: make test-peer PEER=llamafactory
	PEER=$(PEER) OMP_NUM_THREADS=1 $(PEER_VENV)/bin/python -m pytest -W default -p no:cacheprovider tests/peers
	PYTHONPATH=tests/peers $(PEER_VENV)/bin/python tests/peers/record.py $(PEER)

$(PEER_VENV)/.installed: tests/peers/$(PEER).txt pyproject.toml
	$(PYTHON) -m venv --clear $(PEER_VENV)
	$(PEER_VENV)/bin/python -m pip install --quiet "$(TORCH)"
	$(PEER_VENV)/bin/python -m pip install --quiet --no-deps -r tests/peers/$(PEER).txt
	$(PEER_VENV)/bin/python -m pip install --quiet --no-deps -e .
	touch $@

# torch is named beside each peer, so that none brings another. A peer that does not install (-) is named in the table.
bench-gpu: $(STAMP)  ## the loss against its peers and a training step on a CUDA device: tables, and bench-gpu.json
	$(NEEDS_CUDA)
	-$(BIN)/python -m pip install --quiet "$(TORCH)" cut-cross-entropy liger-kernel
	-$(BIN)/python -m pip install --quiet "$(TORCH)" quack-kernels
	$(BIN)/python benchmarks/gpu.py --json bench-gpu.json

bench: $(STAMP)  ## the loss against its peers on this CPU, on planted hidden states
	-$(BIN)/python -m pip install --quiet "$(TORCH)" cut-cross-entropy
	$(BIN)/python benchmarks/loss.py

docs: $(STAMP)  ## the reference pages that are generated from the code, and the site, in site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

build: $(STAMP)
	$(BIN)/python -m build
