# The two commands: `make demo` and `make test` do all their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
export PIP_CONSTRAINT := constraints.txt

.PHONY: help demo test test-slow test-browser lint format venv constraints clean

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' Makefile | column -t -s:

demo: $(VENV)/.installed  ## Install, then run one on-policy round on the bundled tiny model
	$(BIN)/prefmill demo

test: $(VENV)/.installed-test  ## Install, then run the default tests (under 10 minutes)
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-test  ## The kill-anywhere and scheduling tests
	$(BIN)/python -m pytest -m slow

test-browser: $(VENV)/.installed-test  ## Tests that open the report in Chromium
	$(BIN)/python -m pytest -m browser

lint: $(VENV)/.installed-test  ## Ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test  ## Format and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(VENV)/.installed  ## Only install

# On Linux without an NVIDIA driver the CPU build of torch is asked for by name, so that no CUDA
# package can come along: from the configured index, else from PyTorch's own.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	  $(PIP) install -qq "torch==$(TORCH)+cpu" 2>/dev/null || $(PIP) install -qq "torch==$(TORCH)+cpu" \
	    --index-url https://download.pytorch.org/whl/cpu; \
	else $(PIP) install -qq "torch==$(TORCH)"; fi
	@$(PIP) install -qq -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install -qq -e '.[test]'
	@touch $@

constraints: export PIP_CONSTRAINT :=
constraints:  ## Make constraints.txt again from the newest versions that work together
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install -qq -c constraints.in torch -e '.[test]'
	(sed '/^[^#]/,$$d' constraints.txt; build/constraints/bin/pip freeze --exclude-editable \
	  | grep -viE '^(nvidia|cuda|triton|pip=|setuptools=|wheel=)' | sed 's/^\(torch==[^+]*\)+.*/\1/' \
	  | sort -f) > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:  ## Remove the environment and caches (never a workspace)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
