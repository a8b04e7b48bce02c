# Two commands on a fresh machine: `make demo` and `make test`. Each makes its own environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo
# optimum pins transformers 4: an environment of its own.
OPTIMUM := .venv-optimum
OPTIMUM_FOLDERS := out/optimum
# lm_eval wants older packages than `make test` runs with, such as python-dateutil below 3: an environment of its own.
PEERS := .venv-peers

# The models here are small: a second thread gains nothing, and costs tenfold where something else runs on the cores.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1

# What an install is made of beside the Python files, which lie where they are.
BUILT_OF := pyproject.toml setup.py alignez_bake/lowering/_row_kernel.c

.PHONY: demo test lint sweep optimum peers clean

$(VENV)/installed: $(BUILT_OF)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test,benchmarks]"
	touch $@

# The main job on the model that comes with the project, then base, aligned and tuned side by side.
demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(BIN)/alignez-bake --model examples/demo/base --out $(DEMO)/aligned --queries examples/demo/queries.jsonl
	$(BIN)/python -m examples.before_and_after --aligned $(DEMO)/aligned

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Long sweeps that `make test` leaves out.
sweep: $(VENV)/installed
	$(BIN)/python -m pytest -m sweep

# Folders that transformers 5 writes, read by optimum with transformers 4, and exports of both there.
optimum: $(VENV)/installed $(OPTIMUM)/installed
	rm -rf $(OPTIMUM_FOLDERS)
	$(BIN)/python -m tests.optimum.folders $(OPTIMUM_FOLDERS)
	$(OPTIMUM)/bin/python -m pytest -m optimum tests/optimum

# One after the other: an editable install builds the compiled rows into the tree.
$(OPTIMUM)/installed: $(BUILT_OF) | $(VENV)/installed
	$(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/python -m pip install --quiet --upgrade pip
	$(OPTIMUM)/bin/python -m pip install --quiet --editable ".[optimum,cpu,onnx]" "pytest>=9"
	touch $@

# Tests that need TRL and lm-evaluation-harness, which are skipped where those are not installed.
peers: $(PEERS)/installed
	$(PEERS)/bin/python -m pytest tests/benchmarks/test_alternatives.py tests/examples/test_expedite.py \
		tests/evaluation/test_lm_eval_bridge.py

$(PEERS)/installed: $(BUILT_OF)
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet --editable ".[test,benchmarks,dpo,eval]"
	touch $@

clean:
	rm -rf $(VENV) $(OPTIMUM) $(PEERS) out build dist *.egg-info alignez_bake/lowering/*.so
