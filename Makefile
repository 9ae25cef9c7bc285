# Two commands on a machine with Python 3.11 or newer and nothing else:
#   make demo   exports the embedded checkpoint and makes a contact sheet, out/demo.png
#   make test   lint, types and every test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test lint format retrieval train clean

demo: $(INSTALLED)
	$(BIN)/eri demo -o out

test: lint
	$(BIN)/python -m pytest -q --durations=15

lint: $(INSTALLED)
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check --output-format concise .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[export,cpu,dev]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) out build *.egg-info
