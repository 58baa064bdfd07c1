# make            prints this help
# PYTHON=python3.11 chooses the interpreter; TORCH_INDEX_URL=… an index with CPU builds of PyTorch.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help install demo test check drill lint doors lock sbom clean

help: ## Print this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Make .venv from constraints.txt
	@$(PYTHON) infra/bootstrap.py

demo: install ## Everything on this machine: data, training, gate, registry, Triton, a synthetic DICOM series
	@$(BIN)/ctmr demo $(ARGS)

test: install ## All tests, two files at a time, and which ten were slowest
	@$(BIN)/python -m pytest -q -n 2 --no-loadscope-reorder --durations=10 $(ARGS)

check: install lint ## Lint, types, import contracts and the fast tests
	@$(BIN)/python -m pytest -q -m "not slow and not drill" -n 2 $(ARGS)

lint:
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

drill: install ## The long drills in full: kills, and the demo as a person runs it
	@CTMR_DRILL=full $(BIN)/python -m pytest -q -m drill $(ARGS)

doors: install ## Write dvc.yaml, MLproject and pipelines/ct_mr.yaml from the stages
	@$(BIN)/ctmr pipeline doors

lock: install ## Write constraints.txt anew: each pin with the hashes of its release's files
	@$(BIN)/python infra/lock.py

sbom: install ## Write build/sbom: components (CycloneDX), licences, known vulnerabilities
	@$(BIN)/python infra/sbom.py

clean: ## Stop the servers and remove .ctmr (runs, models, registry)
	@test ! -x $(BIN)/ctmr || $(BIN)/ctmr down
	@rm -rf .ctmr
