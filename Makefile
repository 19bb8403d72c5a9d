# `make` lists what there is to do.  `make WHAT PYTHON=/path/to/python` uses that interpreter with the packages
# it has and installs nothing; otherwise everything is installed into $(VENV), with the pins of constraints.txt.
SHELL := /bin/bash
VENV ?= .venv
TORCH ?= yes
TOOLCHAIN ?= yes
ARGS ?=
SLOWER ?= 15
# Idle OpenMP threads sleep, instead of spinning on the cores that the next measurement needs.
export OMP_WAIT_POLICY ?= passive

ifdef PYTHON
PY := $(PYTHON)
ENV :=
TOOLCHAIN := no
else
PY := $(VENV)/bin/python
ENV := $(VENV)/.installed
endif

.PHONY: help env bench bench-layers check fuzz sanitize test test-all hardening test-pythons bench-suite bench-compare gpu-report examples lint format readme build toolchain pycuda clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=path     use this interpreter and the packages it has; install nothing'
	@echo '  ARGS="..."      passed on, as in: make test ARGS="-k naive"   make bench ARGS="--help"'
	@echo '  TORCH=no        leave PyTorch out of a new environment (it is installed on CPython 3.11)'

# The stamp is written last, so an environment whose making was interrupted is made afresh.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@TORCH=$(TORCH) tools/environment.sh $(VENV) $(BASE_PYTHON)

env: $(ENV) ## the environment: .venv with the package (editable), its tools and PyTorch

bench: $(ENV) ## time every variant on this machine
	@$(PY) -m convbackprop bench $(ARGS)

check: $(ENV) ## compare every variant with the float64 reference
	@$(PY) -m convbackprop check $(ARGS)

sanitize: $(ENV) ## look at each access to memory of every variant, on the CPU: minutes
	@$(PY) -m convbackprop sanitize $(ARGS)

test: $(ENV) ## the tests, without the slow ones
	@[ $(TOOLCHAIN) = no ] || $(PY) tools/toolchain.py --optional
	@[ $(TOOLCHAIN) = no ] || $(PY) tools/build_pycuda.py --optional
	@$(PY) -m pytest $$($(PY) -c 'import xdist' 2>/dev/null && echo --numprocesses=auto --dist=worksteal) $(ARGS)

fuzz: $(ENV) ## random problems and arguments for ten minutes; ARGS="--minutes 1 forward"
	@$(PY) -m convbackprop fuzz $(ARGS)

test-all: $(ENV) ## the tests, slow ones included
	@$(MAKE) --no-print-directory test ARGS='-m "not hardening" $(ARGS)'

hardening: $(ENV) ## faults, storms and fuzzing, and the tests on a stand-in for a GPU: a quarter of an hour
	@mkdir -p build/figures
	@CONVBACKPROP_FIGURES=$(CURDIR)/build/figures $(MAKE) --no-print-directory test ARGS='-m hardening $(ARGS)'

test-pythons: ## the tests on each CPython 3.10 to 3.13 of this machine, in .venvs, without PyTorch
	@MAKE="$(MAKE)" tools/test_pythons.sh $(ARGS)

bench-layers: $(ENV) ## time layers of real networks, with many channels
	@$(PY) -m convbackprop bench --suite deepbench $(ARGS)

bench-suite: $(ENV) ## every suite by pytest-benchmark: long; ARGS="-k lab" for one
	@$(PY) -m pytest benchmarks --benchmark-only $(ARGS)

bench-compare: $(ENV) ## a few passes; fails where one is SLOWER (15 %) than in this machine's saved run
	@$(PY) tools/bench_compare.py --slower $(SLOWER) $(ARGS)

gpu-report: $(ENV) ## the GPU's goals, measured: needs a GPU, PyCUDA and torch (ARGS=--dry-run needs no GPU)
	@$(PY) benchmarks/gpu_report.py $(ARGS)

examples: $(ENV) ## run the examples in full, pictures into build/examples: minutes
	@$(PY) examples $(ARGS)

lint: $(ENV) ## ruff and mypy; changes nothing
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(ENV) ## rewrite the Python files as ruff would have them
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

readme: $(ENV) ## regenerate the marked parts of README.md and docs; ARGS=--help tells which
	@$(PY) tools/readme.py $(ARGS)

build: $(ENV) ## sdist and wheel into dist/, and the wheel tried out in an empty environment
	@tools/build_dist.sh $(PY)

toolchain: $(ENV) ## nvcc and cuobjdump: this machine's, else NVIDIA's wheels in the environment
	@$(PY) tools/toolchain.py $(if $(PYTHON),--report)

pycuda: $(ENV) ## PyCUDA, built here (needs no GPU): into build/wheels and, without PYTHON=, the environment
	@$(PY) tools/build_pycuda.py $(if $(PYTHON),,--install)

clean: ## remove build products and caches; keeps the environment and build/wheels
	@rm -rf dist build/lib build/bdist.* *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environments and build/
	@rm -rf $(VENV) .venvs build
