# Everything runs in .venv, which is made with the first Python >= 3.11 found and filled from the package index.
# Each group of requirements has a stamp file, so nothing is installed before it is needed, nor twice.

VENV := .venv
BIN := $(VENV)/bin
# extra arguments for `make demo`, e.g. make demo ARGS=--resume; and for pytest and the benchmarks alike
ARGS :=
# which CUDA build `make gpu-check` installs: cuda12 or cuda13
CUDA := cuda12
PYTHON := python3
# the host library of the kernels; installing the package builds it, and this does when their sources have changed
KERNELS := hydrax_gpu/_kernels/lib/hydrax_kernels.so

# -qq: errors only
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: help demo test lint docs bench gpu-check clean

help:
	@echo "make demo       train on real digits, with progress, a report and two pictures (ARGS=--resume goes on)"
	@echo "make test       the test suite (ARGS='-k order' for some of it)"
	@echo "make lint       style, types and import rules"
	@echo "make docs       the documentation, into site/"
	@echo "make bench      the benchmarks that need no GPU"
	@echo "make gpu-check  the tests and benchmarks that need one (CUDA=cuda12 or cuda13)"
	@echo "make clean      remove what the others made, .venv and .demo included"

demo: $(VENV)/.stamp-demo $(KERNELS)
	@$(BIN)/python docs/examples/digits/train.py $(ARGS)

# two processes, a file's tests in one of them; `pytest` by itself uses one
test: $(VENV)/.stamp-dev $(KERNELS)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# pyright looks into the environment whose python is first in PATH; --verifytypes knows no other way
lint: export PATH := $(CURDIR)/$(BIN):$(PATH)
lint: $(VENV)/.stamp-dev $(KERNELS)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pyright --verifytypes hydrax_gpu --ignoreexternal

docs: $(VENV)/.stamp-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # the theme advertises its successor otherwise
	@echo "open site/index.html"

bench: $(VENV)/.stamp-bench $(KERNELS)
	@$(BIN)/python -m benchmarks cpu $(ARGS)

# One after the other, whatever the one before found; the status is that of all of them.
gpu-check: $(VENV)/.stamp-$(CUDA) $(KERNELS)
	@failed=0; \
	$(BIN)/python -m hydrax_gpu doctor || failed=1; \
	$(BIN)/python -m pytest -m gpu -rs tests/gpu $(ARGS) || failed=1; \
	$(BIN)/python -m benchmarks gpu || failed=1; \
	exit $$failed

clean:
	rm -rf $(dir $(KERNELS)) $(VENV) .demo .bench site build dist .pytest_cache .ruff_cache .hypothesis \
	  .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(PYTHON) python3.14 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    $$python -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); echo "$$python could not make a virtual environment (on Debian: apt install python3-venv)" >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "hydrax_gpu needs Python 3.11 or newer, and none was found; name one: make PYTHON=/path/to/python3" >&2; \
	exit 1

# Without a compiler this says so and goes on: NumPy does the kernels' work then.
$(KERNELS): $(wildcard kernels/*) hydrax_gpu/_kernels/build.py hydrax_gpu/_kernels/sources.py | $(BIN)/python
	@$(BIN)/python hydrax_gpu/_kernels/build.py || true

# .stamp-demo holds the package with its extra "demo", and so on
$(VENV)/.stamp-%: pyproject.toml hatch_build.py | $(BIN)/python
	@echo "installing the package and what '$*' needs into $(VENV) (once)"
	@$(PIP) -e '.[$*]'
	@touch $@

$(VENV)/.stamp-cuda12 $(VENV)/.stamp-cuda13: $(VENV)/.stamp-cuda%: pyproject.toml $(VENV)/.stamp-dev $(VENV)/.stamp-bench
	@echo "installing the CUDA $* build of jax and the GPU libraries into $(VENV) (once)"
	@$(PIP) -e '.[cuda$*]'
	@touch $@
