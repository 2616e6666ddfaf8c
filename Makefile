# Every target makes the environment it needs; a repeated target does only what is left to do.
#   make train
#   make train CONFIG=configs/lite.py WORKDIR=runs/lite
#   make test PYTEST="-k tokenizer -x"
#   PYTHON=/path/to/python3.12 make venv

VENV    ?= .venv
VENV312 ?= .venv312
VENVGPU ?= .venv-gpu
CONFIG  ?= configs/playground.py
WORKDIR ?= runs/playground
PYTEST  ?=
WORKERS ?= 2
PINS    := pyproject.toml scripts/install.sh $(wildcard constraints/*.txt)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv train test test-slow test-gpu-compile lint format test-py312 bench clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.dev  ## .venv with everything for development

train: $(VENV)/.runtime  ## train the playground model, then examine it; again: continues
	$(VENV)/bin/python -m apt_jax.main --config=$(CONFIG) --workdir=$(WORKDIR)
	$(VENV)/bin/apt-jax hlbd verify --workdir=$(WORKDIR)

test: $(VENV)/.test  ## the fast tests
	$(VENV)/bin/python -m pytest -n $(WORKERS) $(PYTEST)

test-slow: $(VENV)/.test  ## the slow tests as well
	$(VENV)/bin/python -m pytest -n $(WORKERS) -m "slow or not slow" $(PYTEST)

test-gpu-compile: $(VENVGPU)/.test  ## compile for NVIDIA GPUs, without one, and check memory and collectives
	$(VENVGPU)/bin/python -c "import jax_cuda13_plugin"  # without it every test would be skipped
	$(VENVGPU)/bin/python -m pytest -n $(WORKERS) -m gpu_compile $(PYTEST)

lint: $(VENV)/.dev  ## style, types, and who may import whom
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports

format: $(VENV)/.dev  ## mend what ruff can mend
	$(VENV)/bin/ruff check --fix .

test-py312:  ## the fast tests under Python 3.12 with its newer jax, where 3.12 is installed
	@if PYTHON= scripts/find-python 3.12 >/dev/null 2>&1; then $(MAKE) --no-print-directory run-py312; \
	else echo "skipped: no Python 3.12 on this machine"; fi

.PHONY: run-py312
run-py312: $(VENV312)/.dev312
	$(VENV312)/bin/python -m pytest -n $(WORKERS) $(PYTEST)

bench: $(VENV)/.test  ## tokens per second and memory beside transformers on this CPU
	$(VENV)/bin/python -m benchmarks.train_cpu

clean:  ## remove caches and build output; runs/ and the environments stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path "./.venv*" -prune -exec rm -rf {} +

# A stamp per set of extras, renewed when a pin changes. The larger sets contain the smaller.
$(VENV)/.runtime: $(PINS)
	scripts/install.sh $(VENV) plot
	@touch $@

$(VENV)/.dev: $(PINS)
	scripts/install.sh $(VENV) dev
	@touch $(VENV)/.runtime $@

$(VENV)/.test: $(PINS)
	scripts/install.sh $(VENV) dev,parity
	@touch $(VENV)/.runtime $(VENV)/.dev $@

$(VENVGPU)/.test: $(PINS)
	scripts/install.sh $(VENVGPU) dev,gpu-compile
	@touch $@

$(VENV312)/.dev312: $(PINS)
	PYTHON= scripts/install.sh $(VENV312) dev 3.12
	@touch $@
