# `make report` and `make test` are all a new clone needs; both set up .venv first.
PYTHON ?= python3
SPEC ?= reports/specs/default.yaml
BIN := .venv/bin
export PYTHONUNBUFFERED := 1

.PHONY: help setup report test test-ui docs lab lock clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

setup: .venv/.ready  ## create .venv with the pinned packages and this project

# uv installs the pinned packages about ten times as quickly as pip would; its own version is pinned with theirs.
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"kaconv needs Python >= 3.11, this is {sys.version.split()[0]}; try make PYTHON=python3.12")'
	@echo "Setting up .venv: about 5 GB of packages, once."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements.lock)"
	$(BIN)/uv pip install --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

report: .venv/.ready  ## run a report (SPEC=reports/specs/default.yaml) and print where its page is
	$(BIN)/kaviz report $(SPEC)

# A process for each core, of one thread each: threads of several processes would wait for each other most of the time.
test: .venv/.ready  ## lint, check types, then run the tests (ARGS="..." goes to pytest)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

test-ui: .venv/.ready  ## test the notebooks in Chromium (KAVIZ_SCREENSHOT=FILE.png keeps what the explorer looks like)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/ui $(ARGS)

docs: .venv/.ready  ## build the documentation site in site/ and check its links; nothing comes from the network
	$(BIN)/python -m sphinx -b html -E -W --keep-going -q -d site/.doctrees docs site/html
	$(BIN)/python docs/_ext/check_site.py site/html

lab: .venv/.ready  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

lock: .venv/.ready  ## pin the newest packages that pyproject.toml admits
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --upgrade --quiet \
	    --custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean:  ## remove what reports and tests wrote (not .venv, not data/cache)
	rm -rf reports/out site docs/runs .pytest_cache .ruff_cache
