# make demo: see the idea work.  make test: lint, types and tests.  Both set up what they need in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint backbone tensorboard clean

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

PRETRAIN := $(BIN)/torchrun --standalone --nproc-per-node 2 tools/pretrain.py configs/kinematics.yaml --resume
LATER := num_easy_clips=0 train.learning_rate=1e-3 train.head_learning_rate_factor=2
backbone: setup  # the four runs that made the shipped weights; the same command goes on after a kill
	$(PRETRAIN)
	$(PRETRAIN) name=kinematics-2 seed=1 $(LATER) backbone.weights=runs/kinematics/backbone.safetensors train.num_epochs=20
	$(PRETRAIN) name=kinematics-3 seed=2 $(LATER) backbone.weights=runs/kinematics-2/backbone.safetensors train.num_epochs=13
	$(PRETRAIN) name=kinematics-4 seed=3 $(LATER) backbone.weights=runs/kinematics-3/backbone.safetensors train.num_epochs=28

tensorboard: setup
	$(BIN)/tensorboard --logdir runs

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache
