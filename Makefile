# Each target sets itself up from a bare clone: a Python of 3.11 or newer is all it needs.
# An installation is repeated only when pyproject.toml has changed.

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
BIN     := $(VENV)/bin
BASE    := $(VENV)/.installed-base
DEV     := $(VENV)/.installed-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check types format bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: $(BASE) ## a quadruped learns to trot, is filmed, exported and verified (minutes)
	$(BIN)/rlgym train rlgym/Imitate-v0 --env.robot a1 --env.clip trot --run-dir runs/demo --overwrite
	$(BIN)/rlgym sim2sim runs/demo --engines bullet --disturbances nominal push-0.5 --episodes 8 --film-seconds 0
	$(BIN)/rlgym record runs/demo --out runs/demo/trot.gif --max-steps 100
	$(BIN)/rlgym export runs/demo --out runs/demo/trot.rlpolicy
	$(BIN)/rlgym verify runs/demo/trot.rlpolicy

test: $(DEV) ## the tests that a change must pass (minutes)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: $(DEV) ## also the slow ones, and those that need an accelerator
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m ""

check: $(DEV) types ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright -p .types --pythonpath $(BIN)/python

format: $(DEV) ## mend formatting and what lint can mend
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(DEV) ## every measured promise (hours on two cores)
	$(BIN)/rlgym bench --all

clean: ## remove builds and caches, not runs/ and not the installation
	rm -rf build dist *.egg-info .types .pytest_cache .ruff_cache .hypothesis
	find rlgym envs agents configs assets tests -name __pycache__ -prune -exec rm -rf {} +

# .types/ shows the tree as it is when installed, for the type checker (see [tool.pyright]). Folders are real and files
# are links, because pyright looks for files in no folder that is a link.
types: $(DEV)
	@$(BIN)/python -c "import os, pathlib, shutil; \
	root, farm = pathlib.Path.cwd(), pathlib.Path('.types'); shutil.rmtree(farm, ignore_errors=True); \
	homes = {'rlgym': '', 'tests': '', 'envs': 'rlgym', 'agents': 'rlgym', 'configs': 'rlgym', 'assets': 'rlgym'}; \
	links = {farm / home / f: root / f for top, home in homes.items() for f in pathlib.Path(top).rglob('*.py')}; \
	[(link.parent.mkdir(parents=True, exist_ok=True), link.symlink_to(file)) for link, file in links.items()]; \
	(farm / 'pyproject.toml').symlink_to(root / 'pyproject.toml')"

$(BASE): pyproject.toml | $(BIN)/python
	@[ $(DEV) -nt pyproject.toml ] || { echo "installing rlgym into $(VENV), once: minutes"; $(INSTALL) -e ".[mujoco,video,export]"; }
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	@echo "installing rlgym and its tools into $(VENV), once: minutes"
	@$(INSTALL) -e ".[all,dev]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	'rlgym needs Python 3.11 or newer and this is ' + sys.version.split()[0] + ': make PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv $(VENV)
