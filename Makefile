# The environment is made on first use. On another Python or torch: make verify PYTHON=python3.12 TORCH=torch==2.11.0
PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
NODE := docs_tools/node_modules/.package-lock.json
export NO_MKDOCS_2_WARNING := 1
export DISABLE_MKDOCS_2_WARNING := true

# visdom, which the tests start, is built with a module that setuptools has dropped since.
export PIP_CONSTRAINT := $(CURDIR)/tests/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)

.DEFAULT_GOAL := help
.PHONY: help verify test lint types docs site serve evidence bench layers examples format clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

verify: $(VENV)/.cli ## prove that every optimizer and layer gives torch's bits; ARGS="--quick --html report.html"
	$(BIN)/reimpl verify $(ARGS)

# A process for each core: tests are many small tensors, which more threads do not make faster.
test: $(VENV)/.test ## run the tests; ARGS="-k sgd"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=8 $(ARGS)

lint: $(VENV)/.dev ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev ## check the types of reimpl/
	$(BIN)/mypy

docs: $(VENV)/.docs $(NODE) ## build the documentation into site/
	$(BIN)/python -m mkdocs build --strict

site: docs $(NODE) ## build them twice to the same bytes, and look at each page in headless Chromium
	FRESH=1 $(BIN)/python -m mkdocs build --strict --site-dir build/site
	diff -r site build/site
	node --test tests/site/*.test.mjs

serve: $(VENV)/.docs $(NODE) ## build the documentation and show it on localhost
	$(BIN)/python -m mkdocs serve --strict

evidence: $(VENV)/.cli ## verify everything, and renew what the documentation shows of it
	mkdir -p build
	$(BIN)/reimpl verify --json build/evidence.json
	$(BIN)/python -m docs_tools.evidence condense build/evidence.json docs/evidence/cpu.json

bench: $(VENV)/.bench ## time a step of each optimizer beside torch's; ARGS="Adam --quick --plot times.svg"
	$(BIN)/reimpl bench $(ARGS)

layers: $(VENV)/.cli ## time a pass of each layer beside torch's; ARGS="--only conv"
	$(BIN)/python benchmarks/layers.py $(ARGS)

examples: $(VENV)/.examples ## install what the examples need, and list the commands that run them
	@sed -n 's/^Run it: \(python\|torchrun\)/  $(subst /,\/,$(BIN))\/\1/p' examples/*.py

format: $(VENV)/.dev ## rewrite the code in the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove what the other commands made, the environment included
	rm -rf $(VENV) docs_tools/node_modules docs_tools/.cache site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "reimpl needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(NODE): docs_tools/package-lock.json
	@command -v npm >/dev/null || { echo "the documentation is finished by Node.js (formulas, drawings): install node and npm"; exit 1; }
	npm ci --silent --prefix docs_tools
	@touch $@

# One mark for each of the package's extras: .cli, .bench, .test, .docs, .dev
$(VENV)/.%: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[$*]"
	@touch $@
