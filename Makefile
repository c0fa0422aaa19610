# `make serve` and `make test` are all that a fresh machine needs; both make their own virtual environment, from the versions
# in requirements/, and make it anew when these change.

PYTHON ?= python3
ARGS ?=
GPU ?=
WORKERS ?= 2
# Each worker has a core: threads of PyTorch and NumPy would only wait for each other.
PYTEST_OPTIONS = -n $(WORKERS) --dist loadgroup --no-loadscope-reorder --durations 25
PYTEST = OMP_NUM_THREADS=1 $(DEV_ENV)/bin/pytest $(PYTEST_OPTIONS)
QUICK = -m "not slow and not triton and not gpu"
SERVE_ENV := .venv-serve
DEV_ENV := .venv
OLDEST_ENV := .venv-oldest
LOCK_ENV := .venv-lock
GPU_ENV := .venv-gpu
DOCS_ENV := .venv-docs
PIP_INSTALL := bin/pip install --quiet --no-compile --disable-pip-version-check

# Where it is set, every command compiles all of PyTorch again before it starts.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help serve test test-fast test-oldest lint format site docs lock version release data train gpu-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(SERVE_ENV)/.done ## serve the bundled model on 127.0.0.1:8000 (ARGS="--port 9000" passes settings on)
	$(SERVE_ENV)/bin/metaspec-serve $(ARGS)

test: lint ## make the development environment, check style and types, run all tests
	$(PYTEST) $(ARGS)

test-fast: $(DEV_ENV)/.done ## run the tests that take seconds and need neither Triton nor a GPU
	$(PYTEST) $(QUICK) $(ARGS)

test-oldest: $(OLDEST_ENV)/.done ## the same with the oldest versions that the pyproject.toml files allow, on the oldest Python
	OMP_NUM_THREADS=1 $(OLDEST_ENV)/bin/pytest $(PYTEST_OPTIONS) $(QUICK) $(ARGS) --ignore tests/distributions --ignore tests/docs

lint: $(DEV_ENV)/.done ## check style and types
	$(DEV_ENV)/bin/ruff check .
	$(DEV_ENV)/bin/ruff format --check .
	$(DEV_ENV)/bin/mypy client contract docs/_site export server simulation testing training tests benchmarks

format: $(DEV_ENV)/.done ## format the code
	$(DEV_ENV)/bin/ruff check --fix .
	$(DEV_ENV)/bin/ruff format .

site: $(DOCS_ENV)/.done ## build the documentation in build/site
	$(DOCS_ENV)/bin/mkdocs build --strict

docs: site ## build the documentation and serve it on 127.0.0.1:8001 (ARGS="-a 127.0.0.1:9001": elsewhere)
	NO_MKDOCS_2_WARNING=1 $(DOCS_ENV)/bin/mkdocs serve --dev-addr 127.0.0.1:8001 $(ARGS)

lock: $(LOCK_ENV)/.done ## bring requirements/*.txt up to date with the pyproject.toml files (ARGS=--upgrade: all to their newest)
	$(COMPILE) requirements/test.in --output-file requirements/test.txt
	$(COMPILE) requirements/serve.in --output-file requirements/serve.txt
	$(COMPILE) requirements/serve-gpu.in --output-file requirements/serve-gpu.txt --no-emit-package onnxruntime
	$(COMPILE) requirements/docs.in --output-file requirements/docs.txt
	$(COMPILE) requirements/triton.in --output-file requirements/triton.txt --no-deps
	$(COMPILE_ANY) requirements/oldest.in --output-file requirements/oldest.txt --python-version 3.11 --resolution lowest-direct

# One set of versions for every Python and system, with markers where a package is for some of them only.
COMPILE = $(COMPILE_ANY) --universal --python-version 3.11 --fork-strategy fewest
COMPILE_ANY = UV_CUSTOM_COMPILE_COMMAND="make lock" $(LOCK_ENV)/bin/uv pip compile --quiet $(ARGS) --config-file requirements/uv.toml \
	$(addprefix --no-emit-package ,metaspec metaspec-contract metaspec-lab metaspec-server metaspec-testing)

version: $(DEV_ENV)/.done ## write VERSION to every file that states it, and cut the changelog (VERSION=X.Y.Z)
	@$(DEV_ENV)/bin/python -m metaspec_testing.release.version $(VERSION)

release: $(DEV_ENV)/.done ## build, check, install and test the distributions, and write the notes, into build/release
	@OMP_NUM_THREADS=1 $(DEV_ENV)/bin/python -m metaspec_testing.release --workers $(WORKERS) $(ARGS)

data: $(DEV_ENV)/.done ## simulate the reference data sets, or what is missing of them, and check all of their files (GPU=1: on a GPU)
	$(if $(GPU),$(DEV_ENV)/$(PIP_INSTALL) --no-build-isolation -e "./lab[gpu]")
	$(SIMULATE) --count 800 --cells 80 --orders --out datasets/bayer-600nm-80 --seed 1
	$(SIMULATE) --count 3000 --cells 80 --out datasets/bayer-600nm --seed 1
	$(SIMULATE) --count 20000 --cells 48 --out datasets/bayer-600nm-coarse --seed 1
	$(DEV_ENV)/bin/metaspec-simulate check --checksums datasets/structures.sha256 \
		$(addprefix datasets/,bayer-600nm-80 designs-600nm-80 bayer-600nm designs-600nm bayer-600nm-coarse designs-600nm-coarse)

SIMULATE = $(DEV_ENV)/bin/metaspec-simulate run $(if $(GPU),--gpu,--workers $$(nproc))

train: $(DEV_ENV)/.done ## train a network from scratch: on the first data sets, then on the fine ones
	$(DEV_ENV)/bin/python training/train.py --config training/configs/field.yaml $(ARGS) \
		--data.path "[datasets/bayer-600nm, datasets/bayer-600nm-coarse, datasets/designs-600nm-coarse]"
	$(DEV_ENV)/bin/python training/train.py --config training/configs/field.yaml --config training/configs/finetune.yaml $(ARGS) \
		--model.weights $$(ls -td runs/field/lightning_logs/version_* | head -1)/checkpoints/best.ckpt

gpu-check: $(GPU_ENV)/.done ## measure the bundled models on this machine's GPU (ARGS="--out FILE.md": where to)
	$(GPU_ENV)/bin/python benchmarks/gpu_check.py $(ARGS)

clean: ## remove all environments and all caches
	rm -rf $(SERVE_ENV) $(DEV_ENV) $(OLDEST_ENV) $(DOCS_ENV) $(LOCK_ENV) $(GPU_ENV) build .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(SERVE_ENV)/.done: requirements/serve.txt contract/pyproject.toml server/pyproject.toml
	$(PYTHON) -m venv --clear $(SERVE_ENV)
	$(SERVE_ENV)/$(PIP_INSTALL) -r requirements/serve.txt
	$(SERVE_ENV)/$(PIP_INSTALL) --no-deps -e ./contract -e ./server
	touch $@

# Triton's server lies apart, for the tests: it needs NumPy 1.
$(DEV_ENV)/.done: requirements/test.txt requirements/triton.txt $(wildcard */pyproject.toml)
	$(PYTHON) -m venv --clear $(DEV_ENV)
	$(DEV_ENV)/$(PIP_INSTALL) -r requirements/test.txt
	$(DEV_ENV)/$(PIP_INSTALL) --no-deps --no-build-isolation -e ./contract -e ./client -e ./server -e ./lab -e ./testing
	$(DEV_ENV)/$(PIP_INSTALL) --no-deps --target $(DEV_ENV)/triton -r requirements/triton.txt
	touch $@

# What tests need is as new as those versions allow.
$(OLDEST_ENV)/.done: requirements/oldest.txt $(wildcard */pyproject.toml)
	$(PYTHON) -m venv --clear $(OLDEST_ENV)
	$(OLDEST_ENV)/$(PIP_INSTALL) --constraint requirements/oldest.txt -e ./contract -e ./client -e ./server -e ./lab -e ./testing
	touch $@

# Nothing is installed where there is no GPU. httpx is for the load on the server.
$(GPU_ENV)/.done: requirements/serve-gpu.txt requirements/test.txt contract/pyproject.toml server/pyproject.toml testing/pyproject.toml
	@$(PYTHON) benchmarks/gpu_check.py --find-gpu
	$(PYTHON) -m venv --clear $(GPU_ENV)
	$(GPU_ENV)/$(PIP_INSTALL) -r requirements/serve-gpu.txt --constraint requirements/test.txt httpx
	$(GPU_ENV)/$(PIP_INSTALL) --no-deps -e ./contract -e ./server -e ./testing
	touch $@

$(DOCS_ENV)/.done: requirements/docs.txt
	$(PYTHON) -m venv --clear $(DOCS_ENV)
	$(DOCS_ENV)/$(PIP_INSTALL) -r requirements/docs.txt
	touch $@

$(LOCK_ENV)/.done:
	$(PYTHON) -m venv --clear $(LOCK_ENV)
	$(LOCK_ENV)/$(PIP_INSTALL) "uv>=0.9,<1"
	touch $@
