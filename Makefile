# Everything works from a fresh clone: the first target that needs it makes the virtual environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-quality soak faults kafka up clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) \
	    else "Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is %d.%d: make PYTHON=python3.12 $(MAKECMDGOALS)" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## a simulated shop, live predictions, a model trained while you watch (3 minutes without a terminal)
	$(BIN)/nextclick up --demo

test: $(READY) ## all tests; says what it skipped and why
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not kafka"
	$(BIN)/python -m pytest -m kafka

check: $(READY) ## formatting, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(READY) ## the benchmarks; print their numbers
	$(BIN)/python -m pytest tests/benchmarks -s -q

bench-quality: $(READY) ## what the model is worth on public data; OPTIONS="--data FILE --arms neighbours,blend --until 5"
	$(BIN)/python -m tests.benchmarks.quality $(OPTIONS)

faults: $(READY) ## the long fault run on a Kafka of its own: kills, freezes, outages; ends with 1 where a count is off
	PYTHONPATH=. $(BIN)/python tests/faults/storm.py
	PYTHONPATH=. $(BIN)/python tests/faults/recovery.py

soak: $(READY) ## three million events through a window of half an hour, then what grows with what; print the series
	$(BIN)/python tests/benchmarks/soak.py
	$(BIN)/python tests/benchmarks/growth.py

kafka: $(READY) ## a real Apache Kafka on loopback (Java 17 and Maven), until ctrl-C
	$(BIN)/python -m deploy.kafka

up: $(READY) ## broker, worker and trainer on this machine; OPTIONS="--kafka HOST:PORT --replay FILE"
	$(BIN)/nextclick up $(OPTIONS)

clean: ## remove the virtual environment, caches and local data
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info build dist
	rm -rf nextclick-data nextclick-store
