# `make help` lists the targets. Each works in a fresh clone: it first sets up what it needs in
# .venv, and repeats that only when pyproject.toml, setup.py or csrc/ has changed.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# 1 builds the CUDA kernels too, which takes a CUDA build of torch and a whole CUDA toolkit.
export AMCT_CUDA ?= 0

PYTORCH_CPU := https://download.pytorch.org/whl/cpu
VENV := .venv
STAMPS := $(VENV)/.stamps
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet
# Commands find the tools of the environment (ninja, cmake, clang-format) without activating it.
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

COMPILED := $(wildcard csrc/*.h csrc/*.cpp csrc/*.cu csrc/ops/* csrc/host/*)
CXX_SOURCES := $(shell find csrc examples -name '*.h' -o -name '*.inl' -o -name '*.cpp' -o -name '*.cu')

# The flags of setup.py, with C++17: the oldest standard that the sources must compile under.
NVCC_FLAGS := -std=c++17 -O3 --fmad=false -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020a000000000000 \
  -Xcompiler=-fPIC,-ffp-contract=off -gencode arch=compute_80,code=sm_80 \
  -gencode arch=compute_90,code=sm_90 -gencode arch=compute_90,code=compute_90
CUDA_INCLUDES := import os, sysconfig, importlib.util as u; \
  torch = os.path.join(os.path.dirname(u.find_spec("torch").origin), "include"); \
  print("-isystem", torch, "-isystem", sysconfig.get_path("include"))

HAS_TORCH := from importlib.metadata import version; \
  raise SystemExit(tuple(map(int, version("torch").split(".")[:2])) < (2, 10))

.DEFAULT_GOAL := help
.PHONY: help venv demo auto qat qat-ddp test lint cuda-check bench proto schema clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

venv: $(STAMPS)/package  ## create .venv with torch and this package; PYTHON=, TORCH= and AMCT_CUDA=1 choose

demo: $(STAMPS)/package  ## quantize a digits classifier and compare the results
	@$(RUN) python examples/ptq_digits.py

auto: $(STAMPS)/package  ## find the layer of a digits classifier that must stay float
	@$(RUN) python examples/auto_calibration_digits.py

qat: $(STAMPS)/package  ## train a digits classifier to be quantized and compare the results
	@$(RUN) python examples/qat_digits.py

qat-ddp: $(STAMPS)/package  ## the same training in two processes
	@$(RUN) torchrun --nproc_per_node=2 examples/qat_ddp.py

test: $(STAMPS)/package  ## run the whole test suite
	@$(RUN) python -m pytest

lint: $(STAMPS)/package  ## ruff, mypy and clang-format, none of which changes a file
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) clang-format --dry-run -Werror $(CXX_SOURCES)

cuda-check: $(STAMPS)/torch  ## compile the CUDA sources with nvcc; needs no GPU
	@if command -v nvcc >/dev/null; then \
	  includes=$$($(VENV)/bin/python -c '$(CUDA_INCLUDES)') && mkdir -p build/cuda-check && \
	  for source in csrc/ops_cuda.cu csrc/library_cuda.cpp; do \
	    echo "nvcc $$source" && \
	    nvcc $(NVCC_FLAGS) $$includes -c $$source -o build/cuda-check/$$(basename $$source).o || exit 1; \
	  done; \
	else \
	  echo "cuda-check: nvcc not found, nothing compiled"; \
	fi

bench: $(STAMPS)/package  ## run every benchmarks/*.py
	@for file in $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)); do $(RUN) python $$file || exit 1; done

proto: $(STAMPS)/package  ## regenerate the descriptor sets from the .proto files
	@$(RUN) python -m amct_pytorch.config.proto.compile

schema: $(STAMPS)/package  ## regenerate the JSON Schema of the quantization config
	@$(RUN) python -m amct_pytorch.config.json_schema

clean:  ## remove what make made: .venv, compiled files, caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f amct_pytorch/*.so
	find amct_pytorch tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMPS)/venv:
	@echo "venv: creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# On Linux the torch of PyPI is the CUDA build, several gigabytes; a CPU build is looked for
# first, on the configured index and on pytorch.org. An installed torch >= 2.10 is kept.
$(STAMPS)/torch: $(STAMPS)/venv
	@$(VENV)/bin/python -c '$(HAS_TORCH)' 2>/dev/null \
	  || { echo "venv: installing $(TORCH)+cpu"; $(PIP) "$(TORCH)+cpu" 2>/dev/null; } \
	  || { echo "venv: the configured index has none, trying pytorch.org"; \
	       $(PIP) --retries 1 --index-url $(PYTORCH_CPU) "$(TORCH)" 2>/dev/null; } \
	  || { echo "venv: out of reach, installing $(TORCH), on Linux several gigabytes"; \
	       $(PIP) "$(TORCH)"; }
	@touch $@

$(STAMPS)/package: $(STAMPS)/torch pyproject.toml setup.py $(COMPILED)
	@echo "venv: compiling and installing amct_pytorch"
	@$(PIP) "setuptools>=77" ninja "pybind11>=2.13" numpy
	@$(RUN) $(PIP) --no-build-isolation -e ".[test,lint]"
	@touch $@
