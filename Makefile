# Needs Python 3.11 or newer with pip, git and make; everything else is installed into .venv and .venvs, below this folder.
# What is there is not installed again, so that every target works offline once it has run.

VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
QUICK := $(wildcard tests/unit tests/property tests/contract tests/docs)
LOWEST := .venvs/diffusion-lowest/bin/python -m pytest
SDK_STAMPS := $(patsubst scripts/sdk_%.sh,.venvs/.installed-%,$(wildcard scripts/sdk_*.sh))

export PYTHON

.PHONY: help install dev check test lowest demo pin clean
.DELETE_ON_ERROR:

help: ## Say what the targets do
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Set up .venv with the command: .venv/bin/fourfold
	@echo "ready: $(BIN)/fourfold"

dev: $(VENV)/.installed-dev ## Also install what checks and tests need

check: dev ## Format, lint, types, import contracts, and the tests that take seconds
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy scripts
	$(BIN)/lint-imports
	$(PYTEST) -m "not slow" $(QUICK)

test: dev $(SDK_STAMPS) ## Every test: also slow ones, real processes, other people's SDKs
	@scripts/system.sh
	@scripts/node_sdks.sh
	$(PYTEST) tests
	@scripts/diffusion_lowest.sh
	$(LOWEST) -q -m "not slow" tests/unit/engine/sd_x4/test_against_stock.py tests/unit/engine/hub

lowest: dev ## Every test of the diffusion model with the oldest versions of its libraries
	@scripts/diffusion_lowest.sh
	$(LOWEST) tests/unit/engine/sd_x4 tests/unit/engine/hub tests/acceptance/test_diffusion_network.py

demo: install ## A real gateway, orchestrator and worker upscale a photo; the pictures are left in demo/
	$(BIN)/python scripts/demo.py

pin: ## Write constraints.txt anew
	scripts/pin.sh

clean: ## Remove everything that was made here, the environments included
	rm -rf .venv .venvs demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests scripts bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt scripts/install.sh scripts/python.sh
	scripts/install.sh
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	scripts/install.sh --dev
	@touch $@

# Environments of their own for other people's SDKs; those for Node are made by the target that needs them, as Node may be
# missing.
.venvs/.installed-%: scripts/sdk_%.sh $(wildcard tests/acceptance/sdk/*.txt)
	@mkdir -p .venvs
	$<
	@touch $@
