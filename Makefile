# `make serve` and `make test` are all that a fresh machine needs; both make their own virtual environment.

PYTHON ?= python3
ARGS ?=
SERVE_ENV := .venv-serve
DEV_ENV := .venv

.PHONY: help serve test lint format data train clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s:

serve: $(SERVE_ENV)/.done ## serve the bundled model on 127.0.0.1:8000 (ARGS="--port 9000" passes settings on)
	$(SERVE_ENV)/bin/metaspec-serve $(ARGS)

test: lint ## make the development environment, check style and types, run all tests
	$(DEV_ENV)/bin/pytest $(ARGS)

lint: $(DEV_ENV)/.done ## check style and types
	$(DEV_ENV)/bin/ruff check .
	$(DEV_ENV)/bin/ruff format --check .
	$(DEV_ENV)/bin/mypy client contract export server simulation testing training

format: $(DEV_ENV)/.done ## format the code
	$(DEV_ENV)/bin/ruff check --fix .
	$(DEV_ENV)/bin/ruff format .

data: $(DEV_ENV)/.done ## simulate the reference data sets, or what is missing of them
	$(DEV_ENV)/bin/metaspec-simulate --count 3000 --cells 80 --out datasets/bayer-600nm --workers $$(nproc) --seed 1
	$(DEV_ENV)/bin/metaspec-simulate --count 20000 --cells 48 --out datasets/bayer-600nm-coarse --workers $$(nproc) --seed 1

train: $(DEV_ENV)/.done ## train a network as the bundled one: on all data sets, then on the fine ones
	$(DEV_ENV)/bin/python training/train.py --config training/configs/field.yaml $(ARGS) \
		--data.path "[datasets/bayer-600nm, datasets/bayer-600nm-coarse, datasets/designs-600nm-coarse]"
	$(DEV_ENV)/bin/python training/train.py --config training/configs/field.yaml --config training/configs/finetune.yaml $(ARGS) \
		--model.weights $$(ls -td runs/field/lightning_logs/version_* | head -1)/checkpoints/best.ckpt

clean: ## remove both environments and all caches
	rm -rf $(SERVE_ENV) $(DEV_ENV) .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(SERVE_ENV)/.done: contract/pyproject.toml server/pyproject.toml
	$(PYTHON) -m venv $(SERVE_ENV)
	$(SERVE_ENV)/bin/pip install --quiet -e ./contract -e ./server
	touch $@

# PyTorch first and by its exact version: where a CPU build is offered, that is what a plain version number selects, and
# nothing installed later replaces it by one of several gigabytes. Triton's server, for the tests, lies apart: it needs NumPy 1.
$(DEV_ENV)/.done: $(wildcard */pyproject.toml)
	$(PYTHON) -m venv $(DEV_ENV)
	$(DEV_ENV)/bin/pip install --quiet torch==2.13.0
	$(DEV_ENV)/bin/pip install --quiet -e ./contract -e ./client -e ./server -e ./lab -e ./testing
	$(DEV_ENV)/bin/pip install --quiet --no-deps --target $(DEV_ENV)/triton "nvidia-pytriton>=0.7,<0.8" "numpy>=1.26,<2"
	touch $@
