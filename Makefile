# `make` alone lists the verbs. Each of them sets up .venv by itself when that is needed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := .venv/.stamp
# All that running a notebook leaves in its file, so that a stripped notebook is the same whatever ran it.
STRIP := $(BIN)/nbstripout --extra-keys "metadata.language_info metadata.widgets metadata.papermill \
	cell.metadata.execution cell.metadata.papermill"

# dvc starts papermill and jupytext by name. MPLBACKEND stays unset: a kernel that inherits it draws no inline figures.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help git setup repro tell imagenet test test-fast lint bench campaign tables figures docs readme pages site notebooks-lint notebooks-strip lock clean

help: ## list these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# The stamp is a copy of the lock that was installed, so only a change of content installs anything.
setup: ## create .venv from requirements.lock (only when the lock's content has changed)
	@cmp -s requirements.lock $(STAMP) || { \
	  $(PYTHON) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "This needs Python 3.11 or newer with its venv module, but '$(PYTHON)' is" \
	      "'$$($(PYTHON) -V 2>&1 | head -n 1)': install it (Debian: apt-get install python3-venv) or name another" \
	      "with make PYTHON=python3.12." >&2; exit 1; }; \
	  { test -x $(BIN)/pip || $(PYTHON) -m venv .venv; } \
	    && $(PIP) install -r requirements.lock \
	    && $(PIP) install --no-deps --no-build-isolation -e . \
	    && cp requirements.lock $(STAMP); }

# Before the environment is built, which takes long: a downloaded ZIP has no .git, and DVC wants one.
git:
	@test -e .git || git rev-parse --git-dir >/dev/null 2>&1 || { echo "This folder is no Git repository (a ZIP" \
	  "brings none), and DVC needs one: run 'git init' here once, then this again." >&2; exit 1; }

repro: git setup ## run what is out of date, then compare with the committed numbers
	@echo "Running the stages of dvc.yaml that are out of date; results go to results/."
	@$(BIN)/python -m companion.pipeline.locks
	@$(BIN)/dvc repro
	@$(BIN)/python -m companion.report close

# One worker a core, at most eight; a file stays in one worker. The longest come first, so that no core waits long at the end. Notebook 7
# comes when notebook 6 has left it the samples, and last the one that draws what the others wrote by hand.
LONGEST := $(addprefix tests/, companion/pipeline/test_pipeline.py companion/pipeline/test_imagenet.py \
	companion/site/test_browser.py nag/test_train.py nag/evaluation/test_stratified.py nag/test_checkpoint.py)
AFTER := notebooks/07_evaluate.ipynb
LAST := notebooks/08_figures.ipynb
NOTEBOOKS := $(filter-out $(AFTER) $(LAST),$(wildcard notebooks/*.ipynb))
TESTS := $(filter-out $(LONGEST),$(shell find tests -name 'test_*.py'))
PYTEST = cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); workers=$$(( cores > 8 ? 8 : cores )); \
	OMP_NUM_THREADS=$$(( cores / workers )) $(BIN)/pytest -q -n $$workers --dist loadfile --no-loadscope-reorder --durations=10
test: setup ## unit and pipeline tests, and every notebook at its small defaults
	@$(PYTEST) --run-slow --nbval-lax $(LONGEST) $(NOTEBOOKS) $(AFTER) $(TESTS) $(LAST)

tell: git setup ## compose figures, answers, pages of notebooks, README and docs/ from the numbers that are there
	@$(BIN)/dvc repro --quiet --single-item fingerprints
	@$(BIN)/dvc repro --single-item $$($(BIN)/python -m companion.pipeline.measured studies/dvc.yaml)
	@$(BIN)/dvc repro --single-item --allow-missing --glob 'site/dvc.yaml:*-tell*'
	@$(BIN)/python -m companion.report answers
	@$(BIN)/dvc repro --single-item claims
	@$(BIN)/python -m companion.report docs

imagenet: git setup ## the paper's scale on GPUs: see imagenet/README.md first
	@$(BIN)/python -m companion.experiments.preflight imagenet/params.yaml
	@$(BIN)/dvc repro imagenet/dvc.yaml

test-fast: setup ## unit tests that are neither slow nor for a GPU
	@$(PYTEST) -m "not slow and not gpu" tests

docs: pages ## write README.md and docs/ from the results, in seconds
	@$(BIN)/python -m companion.report docs

readme: docs ## the same

lint: setup notebooks-lint ## ruff (rules and layout) on .py and .ipynb, mypy on nag and companion, and notebooks-lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

pages: setup ## bring the text of pages/ up to the notebooks, without running them
	@$(BIN)/python -m companion.pipeline.page

site: setup ## build the website into build/site/html, from what is in Git, in a minute
	@$(BIN)/python -m companion.site.build build/site/html

bench: setup ## speed of training and sampling beside a plain reference, to results/bench.json
	@$(BIN)/python -m companion.experiments.bench

campaign: setup ## kills, full disks, damaged files: every stage goes on with the same results (an hour)
	@$(BIN)/python tests/campaign.py $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED))
	@$(BIN)/python -m companion.report docs

tables: setup ## try all schedulers and architectures of diffusers for docs/your_model.md (a minute)
	@$(BIN)/pytest -q --run-slow --tables tests/nag/integrations
	@$(BIN)/python -m companion.report docs

figures: git setup ## redraw the figures (and what they need that is out of date)
	@$(BIN)/dvc repro figures

notebooks-lint: setup ## fail if a notebook carries outputs or traces of a run, or a page is not as its notebook is
	@$(STRIP) --verify notebooks/*.ipynb
	@$(BIN)/python -m companion.pipeline.page --check

notebooks-strip: setup ## remove them
	@$(STRIP) notebooks/*.ipynb

lock: setup ## upgrade .venv within pyproject.toml and pin it (then edit environment.yml)
	@$(PIP) install --upgrade --upgrade-strategy eager -e '.[dev]'
	@{ sed -n '/^#/p' requirements.lock; \
	   $(PIP) freeze --all --exclude-editable \
	     | sed -E -e '/^(pip|wheel)==/d' -e 's/^(nvidia-|cuda-|triton=).*/& ; sys_platform == "linux"/'; \
	 } > requirements.part
	@mv requirements.part requirements.lock
	@cp requirements.lock $(STAMP)

clean: ## remove caches and build/ (not .venv, results/ or the DVC cache)
	@rm -rf build/* dist .pytest_cache .ruff_cache *.egg-info
	@find nag companion notebooks tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
