# Everything here sets itself up: Python 3.11+, make and a package index are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp
CORES  := $(shell nproc 2>/dev/null || echo 2)
# Half as many again as there are cores: tests wait for programs that they started, and a third of two cores was idle.
JOBS   := $(shell expr $(CORES) \* 3 / 2)
MAKEFLAGS += --no-print-directory
# Most of what takes time here is the start of programs, and that takes half as long again where nothing compiled is kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo serve test test-full coverage check format openapi bench lock clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: $(STAMP)  ## a virtual environment with everything locked

demo: setup      ## the whole way on this machine: build, deploy, sleep, wake, roll out, roll back (PLATFORM=fly: on an imitation)
	@$(BIN)/slipway demo --platform $(or $(PLATFORM),local)

serve: setup     ## API, gateway and worker on this machine, until you stop it
	@$(BIN)/slipway serve

test: setup      ## all tests but the volume ones
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not volume" $(PYTEST_ARGS)

test-full: setup ## all tests, volume included
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

coverage: setup  ## all tests but the volume ones, measured; fails under 90 %
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not volume" --cov --cov-report=term --cov-fail-under=90 $(PYTEST_ARGS)

check: setup     ## lint, format, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=. $(BIN)/lint-imports --no-cache

format: setup    ## rewrite the code in our style
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format .

openapi: setup   ## write docs/openapi.json anew from the code
	@$(BIN)/python -m tests.openapi.committed

bench: setup     ## benchmarks, as ratios against a baseline of the same run
	@$(BIN)/python -m benchmarks $(BENCH)

LOCK := uv pip compile -q --generate-hashes --universal --no-emit-index-url --no-emit-find-links --python-version 3.11 --custom-compile-command "make lock"
lock:            ## lock the dependencies anew (needs uv)
	$(LOCK) pyproject.toml --extra otel -o requirements/runtime.txt
	$(LOCK) pyproject.toml --extra local --extra otel -o requirements/local.txt
	$(LOCK) pyproject.toml --extra local --extra imitations --extra otel --extra dev -o requirements/dev.txt
	$(LOCK) builder/requirements.in -o requirements/builder.txt
	$(LOCK) requirements/build.in -o requirements/build.txt

clean:           ## remove what the other targets made here
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .coverage*
