# Two commands on a machine with Python 3.11 or newer and nothing else:
#   make demo   exports the embedded checkpoint and makes a contact sheet, out/demo.png
#   make test   lint, types and every test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# what the demo needs (1.2 GB), and everything: the tests, lint and the site
DEMO := $(VENV)/demo-installed
INSTALLED := $(VENV)/installed

.PHONY: demo test lint format docs peers retrieval train gpu-check test-cuda-stand-in test-ray cuda-graphs clean

demo: $(DEMO)
	$(BIN)/eri demo -o out

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=15

lint: $(INSTALLED)
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check --output-format concise .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the documentation site, in site/
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

INSTALL := $(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt

$(DEMO): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-compile --editable '.[export]'
	touch $@

$(INSTALLED): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[export,cpu,dev,docs]'
	touch $(DEMO) $@

# the training images, for the two below; needs npm
EMOJI := build/emoji
FLUENT := $(EMOJI)/fluent/package/assets
NAMES := $(EMOJI)/names/package/data-by-emoji.json

$(NAMES):
	mkdir -p $(EMOJI)/fluent $(EMOJI)/names
	cd $(EMOJI) && npm pack --silent @lobehub/fluent-emoji-3d@1.1.0 unicode-emoji-json@0.9.0
	tar -xzf $(EMOJI)/lobehub-fluent-emoji-3d-1.1.0.tgz -C $(EMOJI)/fluent
	tar -xzf $(EMOJI)/unicode-emoji-json-0.9.0.tgz -C $(EMOJI)/names

# about an hour and a half on two cores, or an hour with FAMILY=sdxl or FAMILY=flux; if it is killed,
# running it again resumes
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

# the CUDA route without a GPU: the real onnxruntime-gpu on a stand-in for the driver; needs gcc.
# Its wheel lies in a folder of its own, which comes before the ordinary onnxruntime
CUDA := build/cuda_stand_in
ON_CUDA := PYTHONPATH=$(CURDIR)/$(CUDA)/site:$(CURDIR)

test-cuda-stand-in: $(CUDA)/site $(CUDA)/lib
	$(ON_CUDA) $(BIN)/python -m pytest -q -n 2 --durations=5 tests/cuda_stand_in

# the numbers that these tests hold the graphs to, measured anew
cuda-graphs: $(CUDA)/site $(CUDA)/lib
	$(ON_CUDA) $(BIN)/python -m benchmarks.cuda_graphs

$(CUDA)/lib: tests/support/cuda_stand_in/*.c tests/support/cuda_stand_in/*.h
	$(MAKE) --no-print-directory -C tests/support/cuda_stand_in OUT=$(CURDIR)/$(CUDA)/lib
	touch $@

$(CUDA)/site: $(INSTALLED) .ci/constraints-cuda.txt
	rm -rf $@
	$(BIN)/python -m pip install --quiet --no-deps --constraint .ci/constraints-cuda.txt \
		--target $@ onnxruntime-gpu
	touch $@

# OpenVINO GenAI, optimum-intel and optimum-onnx, for `eri bench --peers`
PEERS := build/peers

peers: $(PEERS)/installed

$(PEERS)/installed: pyproject.toml .ci/constraints-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --no-compile --constraint .ci/constraints-peers.txt \
		--editable '.[peers]'
	touch $@

# the server on a Ray cluster of this machine. Ray brings 37 packages, so it has an environment of its
# own, which also sees the ordinary one
RAY := build/ray

test-ray: $(RAY)/installed
	PYTHONPATH=$(CURDIR) $(RAY)/bin/python -m pytest -q --confcutdir=tests/ray --durations=5 tests/ray

$(RAY)/installed: $(INSTALLED) .ci/constraints-ray.txt
	rm -rf $(RAY)
	$(BIN)/python -m venv $(RAY)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(RAY)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ordinary.pth
	$(RAY)/bin/python -m pip install --quiet --constraint .ci/constraints.txt \
		--constraint .ci/constraints-ray.txt 'ray[serve]'
	touch $@

# ten minutes of measurements on this machine's NVIDIA GPU, results in out/gpu; needs the exporter and
# onnxruntime-gpu, see benchmarks/README.md. `make .gpu/bundles.tar.xz` alone makes the parts, on any
# machine
.gpu/bundles.tar.xz: $(INSTALLED) $(shell find eri_export eri_runtime benchmarks/gpu -name '*.py')
	$(BIN)/python -m benchmarks.gpu.pack .gpu

gpu-check: .gpu/bundles.tar.xz $(CUDA)/site
	$(ON_CUDA) PYTHON=$(CURDIR)/$(BIN)/python benchmarks/gpu/ten_minutes.sh .gpu out/gpu

clean:
	rm -rf $(VENV) out build .gpu *.egg-info
