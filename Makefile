# make quickstart    creates .venv, trains two small models and compares them
# make test          creates .venv and runs the tests
# Both reuse .venv afterwards.

VENV ?= .venv
OUTPUT ?= runs/quickstart
# Number of test processes, each with its own test files; 0 runs the tests in this process.
TEST_WORKERS ?= 2
PYTEST_FLAGS ?=

BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
RUN_READY := $(VENV)/.ready-to-run
TEST_READY := $(VENV)/.ready-to-test
DOCS_READY := $(VENV)/.ready-for-docs

.PHONY: help quickstart say-quickstart test test-slow test-instructions lint docs clean
.DELETE_ON_ERROR:

help:  ## show this help
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: say-quickstart $(RUN_READY)  ## train FAM and a BSWA baseline on the pass key and compare them (minutes)
	$(BIN)/python -m famjax quickstart --output $(OUTPUT)

# Printed before anything is installed: the steps and their duration.
say-quickstart:
	@test -e $(RUN_READY) || echo "make quickstart: first installs packages into $(VENV): a few minutes, once"
	@echo "make quickstart: shows within half a minute what a trained model recalls; then"
	@echo "make quickstart: trains two small models in parallel, 2 to 6 minutes on two cores, and evaluates them, 1 to 2"
	@echo "minutes; the comparison is printed and written to $(OUTPUT)"

# A crashed worker ends the run, since xdist can hang after replacing one.
test: style  ## check style, run all but the slow tests (the type checker is one of them)
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(PYTEST_FLAGS)

test-slow: $(TEST_READY) $(DOCS_READY)  ## run the slow tests
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

# XLA's CPU compiler rounds differently with other vector instructions; no tolerance may depend on the processor.
NUMERICAL := tests/attention tests/nn tests/train/test_loss.py tests/train/test_optim.py tests/infer/test_decode.py
test-instructions: $(TEST_READY)  ## run numerical tests with only AVX2, then only SSE4.2 (10 minutes or more each)
	for isa in AVX2 SSE4_2; do \
	    XLA_FLAGS="--xla_cpu_max_isa=$$isa" $(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile \
	        --max-worker-restart 0 $(PYTEST_FLAGS) $(NUMERICAL) || exit 1; \
	done

lint: style  ## run ruff and mypy
	$(BIN)/mypy

.PHONY: style
style: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(DOCS_READY)  ## build the documentation site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:  ## remove the environment and caches; keep runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find famjax tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Uses the first of these Pythons that is new enough and has venv.
$(RUN_READY): requirements.txt setup.py
	@found=; for name in python3.11 python3.12 python3.13 python3; do \
	    if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        found="$$name"; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "famjax needs Python 3.11 or newer with its venv module; found $$(python3 --version 2>/dev/null || echo none): install python3.11 and python3.11-venv, then run make again" >&2; \
	    exit 1; \
	fi; \
	test -x $(BIN)/python || "$$found" -m venv $(VENV)
	@echo "installing the packages of requirements.txt into $(VENV) (jax, flax, orbax, ...)"
	@$(PIP) -r requirements.txt
	@echo "installing famjax itself, from this checkout"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(TEST_READY): $(RUN_READY) requirements-test.txt
	@echo "installing the packages of requirements-test.txt (tensorflow, seqio, lm-eval, ...; a few minutes)"
	@$(PIP) --no-compile -r requirements-test.txt  # of 27,000 files, tests import a part, which is then compiled
	@touch $@

$(DOCS_READY): $(RUN_READY) requirements-docs.txt
	@echo "installing what the documentation needs, requirements-docs.txt (mkdocs)"
	@$(PIP) -r requirements-docs.txt
	@touch $@
