# The two jobs of a fresh clone: `make demo` and `make test`. Both set up .venv first.

PYTHON ?= python3
BIN := .venv/bin
# Tests run in as many processes as there are cores; each keeps to one thread.
export OMP_NUM_THREADS ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: demo test lint format clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/lrsearch demo

test: .venv/installed lint
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term
	$(BIN)/python tests/packaging/check_wheel.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and alone (see constraints.txt); the rest at the pinned versions.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
