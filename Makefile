# On Linux, plain PyPI serves torch with several gigabytes of CUDA. To save them, name PyTorch's CPU wheel
# index (see "Get started" on pytorch.org):  make demo TORCH_INDEX=<that address>
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin

.PHONY: demo test test-real-weights lint format fixtures demo-model clean image-test
.DELETE_ON_ERROR:

demo: .venv/ready
	$(BIN)/python tools/demo.py

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "whisper-byoc needs Python 3.11 or newer")'
	@echo 'setting up .venv (a minute or two: torch alone has 190 MB)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/ready-for-tests: .venv/ready
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps pytrickle==0.1.6  # a peer in tests; its dependencies are not needed for that
	@touch $@

test: .venv/ready-for-tests
	$(BIN)/python -m pytest

# Downloads tiny.en, once; skips where it cannot be had.
test-real-weights: .venv/ready-for-tests
	$(BIN)/python -m pytest -m real_weights -rs tests/speech/fast/test_real_weights.py

lint: .venv/ready-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Needs espeak-ng.
fixtures: .venv/ready
	$(BIN)/python tools/make_fixtures.py --check

# Trains the demo model anew: some three hours on two free processors, up to 2.5 of them training. Needs espeak-ng, and
# flite for its voices. The result stays in build/demo-model; tools/demo_model/README.md says how to ship it.
demo-model: .venv/ready
	$(BIN)/python -m tools.demo_model.generate --folder build/demo-model
	$(BIN)/python -m tools.demo_model.train --folder build/demo-model
	mkdir -p build/demo-model/packed
	$(BIN)/python -m tools.demo_model.pack build/demo-model/wide.pt build/demo-model/packed/demo.pt
	$(BIN)/python -m tools.demo_model.evaluate build/demo-model/packed/demo.pt --json build/demo-model/figures.json

# Needs an engine (Docker, Podman), or a command that builds without one: make image-test IMAGE_BUILDER=COMMAND
# ENGINE=openai builds the larger image.
image-test:
	ENGINE='$(ENGINE)' TORCH_INDEX='$(TORCH_INDEX)' IMAGE_BUILDER='$(IMAGE_BUILDER)' $(PYTHON) tools/image_test.py

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
