# The table of contents: `make help`. A target runs on a fresh machine: it makes what it needs, inside this folder.
.DEFAULT_GOAL := help
export UV_PYTHON_DOWNLOADS := never

UV := $(or $(shell command -v uv),.uv/bin/uv)
PYTHON := .venv/bin/python
SYNC = $(UV) sync --quiet --locked --inexact $(if $(filter serve,$*),,--group $*)
FALLBACK = { echo 'That failed; once more without meinheld, which needs a C compiler and Python headers.' >&2; $(SYNC) --no-install-package meinheld; }

.PHONY: help serve stack token certs up down logs test e2e check fix dashboards models build test-models bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

serve: .venv/.serve .redis ## the API on http://127.0.0.1:8000 with a private Redis; no root, no Docker
	@$(PYTHON) -m inference_api.serve

stack: .venv/.stack .redis ## the whole stack without Docker, https://localhost:8443; no root
	@$(PYTHON) -m native.stack

token: .venv/.stack ## an access token of the demo client, from the stack that runs, with or without Docker
	@$(PYTHON) -m native.access_token

certs: .venv/.stack ## a new server certificate for the stack that runs, with or without Docker
	@$(PYTHON) -m native.certificates

up: ## the whole stack with Docker, https://localhost:8443
	docker compose up -d --build --wait && docker compose cp nginx:/etc/tiercel/tls/ca.crt ca.crt

down: ## stop it; its volumes stay
	docker compose down

logs: $(if $(REQUEST),.venv/.stack) ## what it says, as it says it; REQUEST=id: what all of it has said of one request
	@$(if $(REQUEST),$(PYTHON) -m native.logs '$(REQUEST)',docker compose logs --follow --since 5m $(ARGS))

test: .venv/.test .redis ## all tests that need no Docker engine
	@$(PYTHON) -m native.programs
	$(PYTHON) -m pytest $(ARGS)

e2e: .venv/.test ## tests of the Compose stack; needs a Docker engine
	$(PYTHON) -m pytest tests/e2e -p no:randomly $(ARGS)

check: .venv/.check .venv/.test ## lint and types; edits nothing
	.venv/bin/ruff check && .venv/bin/ruff format --check && .venv/bin/mypy

fix: .venv/.check ## what the linter can mend by itself
	.venv/bin/ruff check --fix && .venv/bin/ruff format

dashboards: .venv/.check ## Grafana's dashboards, from monitoring/dashboards.py
	$(PYTHON) -m monitoring.dashboards

models: .venv-models/.done ## rebuild the shipped models from their sources (installs PyTorch)
	for model in efficientnet-lite0 breast-cancer; do PYTHONPATH=services .venv-models/bin/python -m command_line.main build models/$$model/recipe.toml $(ARGS) || exit 1; done

build: .venv-models/.done ## make a package: RECIPE=path/to/recipe.toml, ARGS for options
	@PYTHONPATH=services .venv-models/bin/python -m command_line.main build $(RECIPE) $(ARGS)

test-models: .venv-models/.done .venv-tensorflow/.done ## tests of recipes and runtimes that need PyTorch, scikit-learn, TensorFlow or LiteRT, the walk-through among them
	PYTHONPATH=$(CURDIR)/services:$(CURDIR)/tests .venv-models/bin/python -m pytest -p no:anyio tests/models $(ARGS)

bench: .venv/.bench .redis ## speed beside bare FastAPI and Flask, as ratios of one run
	$(PYTHON) loadtest/bench.py $(ARGS)

clean: ## remove what the other targets made
	rm -rf .venv .venv-models .venv-tensorflow .redis .uv .mypy_cache .pytest_cache .ruff_cache

.venv/.%: pyproject.toml uv.lock | $(UV)
	@$(SYNC) || $(FALLBACK)
	@touch $@

# Nothing where the system has a redis-server.
.redis: uv.lock | $(UV)
	command -v redis-server || $(UV) export --quiet --locked --only-group redis | $(UV) pip install --quiet --target $@ --python-version 3.11 --require-hashes -r -
	@mkdir -p $@ && touch $@

.venv-tensorflow: .venv-tensorflow/.done
.venv-tensorflow/.done: models/requirements-tensorflow.txt
	python3 -m venv .venv-tensorflow && .venv-tensorflow/bin/pip install --quiet --requirement $<
	@touch $@

.venv-models/.done: models/requirements.txt
	python3 -m venv .venv-models && .venv-models/bin/pip install --quiet --requirement $<
	.venv-models/bin/pip install --quiet --no-deps --editable .
	@touch $@

.uv/bin/uv:
	@echo 'Installing uv into .uv, once' >&2 && rm -rf .uv && python3 -m venv .uv && .uv/bin/pip install --quiet uv==0.13.9 || python3 -m pip install --quiet --target .uv uv==0.13.9
