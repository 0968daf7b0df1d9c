# Every target makes .venv and installs what it needs, once: a target whose stamp is newer than pyproject.toml installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SLOW := slow or multiprocess or browser or demo or parity
# What the parity tests compare with, alone: its own dependencies are large and pin another WebDataset.
PEER := "clip-benchmark>=1.6,<2"

.PHONY: demo test test-slow lint bench clean

demo: $(VENV)/.demo
	$(BIN)/modalign demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "$(SLOW)"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/step.py

clean:
	rm -rf $(VENV)

$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(BIN)/python
	@echo "installing modalign[$*] and its packages into $(VENV) (PyTorch is large: a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@if [ $* = dev ]; then $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEER); fi
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "modalign needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
