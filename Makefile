# Two commands on a machine with Python 3.11 or newer and nothing else:
#   make demo   exports the embedded checkpoint and makes a contact sheet, out/demo.png
#   make test   lint, types and every test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test lint format retrieval train gpu-check clean

demo: $(INSTALLED)
	$(BIN)/eri demo -o out

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=15

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

# the training images, for the two below; needs npm
EMOJI := build/emoji
FLUENT := $(EMOJI)/fluent/package/assets
NAMES := $(EMOJI)/names/package/data-by-emoji.json

$(NAMES):
	mkdir -p $(EMOJI)/fluent $(EMOJI)/names
	cd $(EMOJI) && npm pack --silent @lobehub/fluent-emoji-3d@1.1.0 unicode-emoji-json@0.9.0
	tar -xzf $(EMOJI)/lobehub-fluent-emoji-3d-1.1.0.tgz -C $(EMOJI)/fluent
	tar -xzf $(EMOJI)/unicode-emoji-json-0.9.0.tgz -C $(EMOJI)/names

# about an hour and a half on two cores, or an hour with FAMILY=sdxl or FAMILY=flux; killed at any
# moment, it goes on where it was
FAMILY := sd35
train: $(INSTALLED) $(NAMES)
	$(BIN)/python -m eri_export.embedded.train --family $(FAMILY) --emoji $(FLUENT) --names $(NAMES) \
		--work build/train

retrieval: demo $(NAMES)
	$(BIN)/python benchmarks/retrieval.py engines/demo --guidance 4 --emoji $(FLUENT) --names $(NAMES)

# the same for the other two: make retrieval-sdxl, make retrieval-flux
retrieval-%: $(INSTALLED) $(NAMES)
	$(BIN)/eri demo --family $* -o out
	$(BIN)/python benchmarks/retrieval.py engines/demo-$* --emoji $(FLUENT) --names $(NAMES)

# every check that needs an NVIDIA GPU, with the backends that are installed; see benchmarks/README.md
gpu-check: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu

clean:
	rm -rf $(VENV) out build *.egg-info
