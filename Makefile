# Every target sets up what it needs, in .venv, once. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= runs/demo
SHORT := --image-steps 20 --video-steps 20 --student-steps 20 --train 640 --labelled 320 --val 80 --test 160

.PHONY: setup demo test test-slow performance check format wheel clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## render built-in videos, train teachers and students on them, probe what was learned
	$(BIN)/tubelet demo --out $(OUT)

test: $(READY)  ## the tests, with line coverage
	$(BIN)/python -m pytest -n 2 --cov tubelet --cov-report term --cov-fail-under 85

test-slow: $(READY)  ## what takes minutes: training to a score, kill and resume at full size
	$(BIN)/python -m pytest -m slow

performance: $(READY)  ## docs/performance.*: how fast it is here, beside others; leave the machine alone meanwhile
	$(BIN)/tubelet bench all --out docs

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)  ## dist/*.whl, tried in an environment of its own with a short demo
	rm -rf dist build
	$(BIN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv build/env
	build/env/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[demo]"
	cd build && env/bin/tubelet doctor
	cd build && env/bin/tubelet demo --out demo $(SHORT)

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache .coverage
