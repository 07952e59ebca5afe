# Two commands on a fresh machine with Python 3.11 or newer: `make bench` and `make test`. Both set up .venv first.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3,\
	$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
DONE := .venv/installed
DOCS := .venv/installed-docs

.PHONY: bench test lint types perf gpu docs setup clean

bench: $(DONE)  ## The embedded suite: a table, and runs/embedded/report.html
	$(BIN)/defend bench

test: $(DONE)  ## All tests, one worker for each core; a file alone: $(BIN)/pytest tests/test_noise.py
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DONE)
	$(BIN)/mypy

perf: $(DONE)  ## Ratios measured side by side in one run; nothing is asserted
	for file in tests/perf/bench.py tests/perf/attacks.py tests/perf/split_vqvae.py tests/perf/winograd.py tests/perf/diffusion.py; do $(BIN)/python $$file || exit 1; done

gpu: $(DONE)  ## What needs a GPU, in ten minutes, into gpu.json; smaller without one
	$(BIN)/python tests/gpu/check_gpu.py

docs: $(DOCS)
	$(BIN)/mkdocs build --strict

setup: $(DONE)

# Again only when what is installed may have changed: the sources themselves are used where they stand.
$(DONE): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e '.[test]'
	@touch $@

$(DOCS): $(DONE)
	$(PIP) -e '.[docs]'
	@touch $@

clean:  ## What can be made again; runs/ stays
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
