# Python 3.11 to 3.13 is the only prerequisite: `make quickstart` and `make test` build .venv when it is missing.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-fast test-slow lint clean

$(STAMP): setup.py $(wildcard data/*.c)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "error: Python %d.%d is not supported; use Python 3.11, 3.12 or 3.13, e.g. make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[xla,test,dev]'
	@touch $(STAMP)

.venv: $(STAMP)

quickstart: $(STAMP)
	$(PY) -m engine.quickstart

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow and not gpu" -x -q tests/data tests/models tests/robust tests/engine/test_recipe.py tests/engine/test_schedule.py tests/engine/test_ledger.py

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean:
	rm -rf runs .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
