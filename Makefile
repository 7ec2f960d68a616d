# Every target but `help` and `clean` installs first when needed.
PYTHON ?= python3
FILE ?= tuned_examples/bipedal.py
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
BENCH_STAMP := .venv/.installed-bench
DOCS_STAMP := .venv/.installed-docs
RELEASE_STAMP := .venv/.installed-release
# Each process of the tests has a Ray of its own; the tests of a file share one.
TWO := --numprocesses 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow test-chaos chaos soak bench study cluster-job docs gpu-check release check format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## Create .venv with the versions of ci/constraints.txt

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint ci/constraints.txt --editable '.[bench]'
	@touch $(BENCH_STAMP)

$(STAMP): pyproject.toml ci/constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint ci/constraints.txt --editable '.[box2d,envpool,mujoco,atari,minigrid,video,optuna,torchjd,onnx,hub,wandb,mlflow,dev]'
	@touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint ci/constraints.txt --editable '.[docs]'
	@touch $(DOCS_STAMP)

$(RELEASE_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint ci/constraints.txt --editable '.[release]'
	@touch $(RELEASE_STAMP)

train: $(STAMP) ## Train FILE (tuned_examples/bipedal.py); ARGS goes to `rllib train file`
	$(BIN)/rllib train file $(FILE) $(ARGS)

test: $(STAMP) ## Run the fast tests in two processes; ARGS goes to pytest
	$(BIN)/python -m pytest -m 'not slow' $(TWO) $(ARGS)

test-slow: $(STAMP) ## Run the slow tests in two processes; ARGS goes to pytest
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=3600 $(TWO) --ignore tests/chaos $(ARGS)

test-chaos: $(STAMP) ## Run the slow tests of faults in sweeps, which watch the clock, alone
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=3600 tests/chaos $(ARGS)

chaos: $(STAMP) ## Faults at random in a sweep on two nodes; ARGS="--hours 2" for longer
	$(BIN)/python -W ignore -m tests.chaos $(ARGS)

soak: $(STAMP) ## Two hours of short rounds: memory and descriptors may not grow
	$(BIN)/python -W ignore -m tests.chaos.soak $(ARGS)

study: $(STAMP) ## Make the study's missing runs and draw its page; ARGS=--report only draws
	$(BIN)/python -m studies $(ARGS)

cluster-job: $(STAMP) ## Train on a cluster of two nodes on loopback, by `ray job submit`
	ci/cluster_job.sh

bench: $(BENCH_STAMP) ## Measure throughput against RLlib and Stable-Baselines3; ARGS goes to it
	$(BIN)/python benchmarks/throughput.py $(ARGS)

docs: $(DOCS_STAMP) ## Build the documentation into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean

gpu-check: $(STAMP) ## Check on a GPU that the learners' device and number do not matter; skips without
	$(BIN)/python ci/gpu_check.py $(ARGS)

release: $(RELEASE_STAMP) ## Build wheel and sdist, check them, and train with each in an empty environment
	ci/release.sh

check: $(STAMP) ## Lint, format, types, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format, and fix what can be fixed by itself
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## Remove caches and builds; .venv and results stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
