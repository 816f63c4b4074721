# make quickstart    sets everything up in .venv, trains two small models and compares them
# make test          sets everything up in .venv and passes the tests
# A second run finds the environment ready and starts at once.

VENV ?= .venv
OUTPUT ?= runs/quickstart
# Tests run in so many processes, each with files of its own; 0 is this one.
TEST_WORKERS ?= 2
PYTEST_FLAGS ?=

BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
RUN_READY := $(VENV)/.ready-to-run
TEST_READY := $(VENV)/.ready-to-test
DOCS_READY := $(VENV)/.ready-for-docs

.PHONY: help quickstart say-quickstart test test-slow test-instructions lint docs clean
.DELETE_ON_ERROR:

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: say-quickstart $(RUN_READY)  ## train FAM and its twin without memory on the pass key, compare them (minutes)
	$(BIN)/python -m famjax quickstart --output $(OUTPUT)

# Before anything is installed: what comes, and how long it takes.
say-quickstart:
	@test -e $(RUN_READY) || echo "make quickstart: first installs packages into $(VENV): a few minutes, the first time only"
	@echo "make quickstart: shows within half a minute what a trained model recalls; then"
	@echo "make quickstart: trains two small models side by side, 5 to 8 minutes on two cores, and evaluates them, 1 to 2"
	@echo "minutes; the comparison is printed and written to $(OUTPUT)"

# A process that crashes ends the run: what xdist would go on with can wait for ever.
test: lint  ## style, types and all but the slow tests
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile --max-worker-restart 0 $(PYTEST_FLAGS)

test-slow: $(TEST_READY)  ## the slow tests
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

# The compiler for CPUs rounds otherwise with other vector instructions: no tolerance may depend on the processor at hand.
NUMERICAL := tests/attention tests/nn tests/train/test_loss.py tests/train/test_optim.py tests/infer/test_decode.py
test-instructions: $(TEST_READY)  ## numerical tests with AVX2 alone, and with SSE4.2 alone (10 minutes or more each)
	for isa in AVX2 SSE4_2; do \
	    XLA_FLAGS="--xla_cpu_max_isa=$$isa" $(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile \
	        --max-worker-restart 0 $(PYTEST_FLAGS) $(NUMERICAL) || exit 1; \
	done

lint: $(TEST_READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS_READY)  ## the documentation as a site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:  ## remove the environment and what tools left; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find famjax tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The first Python of these names that is new enough and can make environments.
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
	@echo "installing what the tests need, requirements-test.txt (tensorflow, seqio, lm-eval, ...; some minutes)"
	@$(PIP) -r requirements-test.txt
	@touch $@

$(DOCS_READY): $(RUN_READY) requirements-docs.txt
	@echo "installing what the documentation needs, requirements-docs.txt (mkdocs)"
	@$(PIP) -r requirements-docs.txt
	@touch $@
