# The first two targets are all a newcomer needs; each makes the environment if it is not there.
VENV ?= .venv
PYTHON ?= python3
# The version CI runs. Any later one should do: make TORCH=torch setup
TORCH ?= torch==2.13.0
# For the tests of ZeRO, on its CPU accelerator. It looks at torch while it is built, and compiles nothing then.
DEEPSPEED ?= deepspeed>=0.17
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test setup format lint check test-gpu test-lowest bench bench-gpu docs build

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
	$(BIN)/python -m pip install --quiet setuptools wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation "$(DEEPSPEED)" || echo "without DeepSpeed: its tests skip"
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
	$(BIN)/python -m pytest -m gpu tests/loss tests/test_gpu.py

# Not torch: its lowest version may come as another build, see TORCH.
test-lowest: $(STAMP)  ## loss, head and trainer with the lowest versions that pyproject.toml declares
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python tests/lowest_versions.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet -e ".[train]" pytest -c $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pytest -W default -m "not slow" $(LOWEST_TESTS)
LOWEST_TESTS := tests/loss tests/integrations tests/test_head.py tests/test_head_guard.py tests/test_head_module.py \
	tests/test_objectives.py tests/test_trainer.py tests/test_trainer_logs.py tests/test_trl_sft_trainer.py

bench-gpu: $(STAMP)  ## the same on a CUDA device, in bf16, at the sizes of real models
	$(BIN)/python benchmarks/loss.py --device cuda --dtype bfloat16 --planted 8192,2560,151936 16384,4096,151936 \
		--rounds 20 --json bench-gpu.json

bench: $(STAMP)  ## the loss against its peers, on real hidden states
	$(BIN)/python benchmarks/loss.py

docs: $(STAMP)  ## the reference pages that are generated from the code
	$(BIN)/python docs/generate.py

build: $(STAMP)
	$(BIN)/python -m build
