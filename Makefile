# make study   environment, data, the quickstart study, its report
# make test    environment, linters, all tests
# make test-fast   the tests that are not marked slow, without the linters
# make lint    ruff and mypy alone
# make docs    the documentation as a site, in site/
# The first Python here that starts: 3.12, which gets megatron-core 0.19, or 3.11, which gets 0.16.
PYTHON ?= $(shell for python in python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
CONSTRAINTS ?= .ci/constraints.txt
DRY_DEVICE := .ci/dry-device.txt
STUDY ?= run_scripts/studies/quickstart.yaml
# Test files that run side by side; of what one of them starts, two or four processes may run at a time.
WORKERS ?= 2

BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: study test test-fast lint docs

study: $(VENV)/.installed
	$(BIN)/kis data demo --output data/demo
	$(BIN)/kis study run $(STUDY)

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q -f docs/site/mkdocs.yml

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.12 or 3.11 is needed: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python setup.py $(CONSTRAINTS)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python setup.py $(CONSTRAINTS) $(DRY_DEVICE)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/dry-device \
		--python-version 3.12 --ignore-requires-python --only-binary=:all: -r $(DRY_DEVICE)
	@touch $@ $(VENV)/.installed
