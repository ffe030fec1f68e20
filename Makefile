PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo examples rice test test-slow torture docs lint env clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: env
	$(BIN)/python -m genomepred.demo --out demo-out
	@echo "to use genomepred in this shell: . $(BIN)/activate"

examples: env
	PATH="$(abspath $(BIN)):$$PATH" examples/first_hour.sh examples-out

rice: env
	PATH="$(abspath $(BIN)):$$PATH" examples/rice_story.sh rice-out

# Two processes, each on one thread; all tests of a file in one of them, files in the order that
# tests/conftest.py gives them. Compiled modules are kept whatever the environment says: tests start
# hundreds of processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test: env
	$(PYTEST)

test-slow: env
	$(PYTEST) -m slow
	$(PYTEST) -m 'hypothesis and not slow and not gpu' --hypothesis-profile=thorough

torture: env
	$(BIN)/python tests/torture.py

docs: env
	$(BIN)/python -m tests.cli.reference > docs/commands.md

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf demo-out examples-out rice-out build dist *.egg-info
