# make demo    set up, then fine-tune the built-in model on a persona and compare before and after
# make test    set up, then lint, types and the quick tests; what CI runs
# make gpu     the tests that need a CUDA device; skipped where there is none
# The first run makes .venv and installs the exact versions of requirements.txt; later runs start in seconds.
# Another Python: make demo PYTHON=/path/to/python3.12. Settings of pip (index, proxy, cache) are taken as they are.

PYTHON ?= $(shell for found in python3 python3.13 python3.12 python3.11 python; do \
	$$found -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$found && break; done)
BIN := .venv/bin

.PHONY: demo test lint test-slow gpu clean

demo: .venv/installed
	@$(BIN)/tunewright demo

test: lint
	$(BIN)/python -m pytest -q -m "not slow and not gpu"

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test-slow: .venv/installed
	$(BIN)/python -m pytest -m "slow and not gpu"

gpu: .venv/installed
	$(BIN)/python -m pytest -m gpu

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "tunewright needs Python 3.11 or newer, and none is on the PATH." >&2; \
		echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments." >&2; \
		echo "On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version), once; torch is the largest download ..."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -e .
	@touch $@
