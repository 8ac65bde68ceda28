# The two commands are `make book` and `make test`; `make help` lists the rest.
PYTHON ?= python3
PY := .venv/bin/python
PORT ?= 8000
# How many chapters run at the same time.
JOBS ?= 2
# `make test FULL=1` reaches the tests as a variable of the environment.
export FULL

.DEFAULT_GOAL := help
.PHONY: help book test test-cuda lint lab serve bench run clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1|/' | column -t -s '|'

book: .venv/done ## build the website: stage, render, check
	@$(PY) -m tools.export
	@$(PY) -m tools.stage
	@$(PY) -m tools.render
	@$(PY) -m tools.check
	@echo
	@echo "The book is in _site/index.html.  To read it with search:  make serve"

test: .venv/done ## run every chapter, all tests and the linters (FULL=1: the long runs, too)
	@$(PY) -m tools.export --check
	@$(PY) -m tools.readme --check
	@$(MAKE) --no-print-directory lint
	@$(PY) -m tools.notebook check --jobs $(JOBS) nbs/*.ipynb
	@$(PY) -m tools.against_library --jobs $(JOBS)
	@$(PY) -m tools.stage && $(PY) -m tools.render && $(PY) -m tools.check
	@$(PY) -m pytest

lint: .venv/done
	@$(PY) -m ruff check . && $(PY) -m mypy

lab: .venv/done  ## open the book in JupyterLab, on this machine only, with a token
	$(PY) -m jupyterlab --ip=127.0.0.1 --notebook-dir=nbs $(shell test "$$(id -u)" = 0 && echo --allow-root)

serve:           ## serve _site/ on this machine (PORT=8000)
	@test -d _site || { echo "there is no site yet: make book"; exit 1; }
	@echo "http://127.0.0.1:$(PORT)/  (Ctrl-C to stop)"
	@$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _site

test-cuda: .venv/done ## the same comparisons on this machine's graphics card (installs CuPy)
	@$(PY) -m uv pip install -q -p $(PY) -c constraints.txt -e ".[book,cuda,cuda-check]"
	@$(PY) -c "from gradbook.tensor.backend import device; print(device('cuda'))"
	@$(PY) -m pytest -n0 tests/test_cuda.py tests/test_cuda_training.py tests/test_random.py

bench: .venv/peers ## measure gradbook against its peers; the figures go to nbs/results/
	@rm -rf build/bench
	@set -e; for name in $$($(PY) -m gradbook bench | cut -d ' ' -f 1 | grep -vx cuda); do \
	    $(PY) -m gradbook bench $$name --out build/bench; \
	    cp build/bench/bench-$$name.json nbs/results/bench_$$name.json; \
	done

run: .venv/done  ## run all chapters and store their outputs
	$(PY) -m tools.notebook run --jobs $(JOBS) nbs/*.ipynb
	$(PY) -m tools.readme

clean:           ## remove everything that was built, and the virtual environment
	rm -rf .venv _site build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find _proc -mindepth 1 -not -name _quarto.yml -delete

.venv/done: pyproject.toml constraints.txt
	@echo "making the virtual environment (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "gradbook needs Python 3.11 or newer: make book PYTHON=python3.12"; exit 1; }
	@test -x .venv/bin/pip || { rm -rf .venv; $(PYTHON) -m venv .venv; } || \
	    { rm -rf .venv; echo "Python's venv is missing (Debian: apt install python3-venv)"; exit 1; }
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt uv
	@$(PY) -m uv pip install -q -p $(PY) -c constraints.txt -e ".[book]"
	@touch $@

# PyTorch through pip, which takes the CPU build that a machine may hold ready; uv would not look there.
.venv/peers: .venv/done
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt torch
	@$(PY) -m uv pip install -q -p $(PY) -c constraints.txt -e ".[book,compare,train,cuda-check]"
	@touch $@
