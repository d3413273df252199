# make demo: see the idea work.  make test: lint, types and tests.  Both set up what they need in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint tensorboard clean

setup: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("diveparse needs Python 3.10 or later" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[test]'
	touch $@

demo: setup
	$(BIN)/diveparse demo

test: setup lint
	$(BIN)/pytest --numprocesses 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types && ln -sfn ../.. build/types/diveparse  # mypy cannot follow the editable install's own hook
	MYPYPATH=build/types $(BIN)/mypy $(addprefix build/types/diveparse/,configs datasets models heads engine commands) tools tests

tensorboard: setup
	$(BIN)/tensorboard --logdir runs

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache
