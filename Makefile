# make demo | test | check | install | docs      Needs Python 3.11 or newer, make and a compiler.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
RUN := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
STAMP := .venv/.installed

.PHONY: install demo test check docs clean

install: $(STAMP)

# torch first and by its exact version: a plain `torch` may bring gigabytes that nobody needs here.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,check]'
	$(BIN)/selectune embedded install
	touch $@

demo: install
	$(RUN) $(BIN)/selectune demo --out selectune-demo

# Two tests at a time with a thread each: on two cores that is faster than one test with two threads, whose waiting for each other costs more.
test: install
	$(RUN) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(RUN) $(BIN)/python scripts/build_docs.py --check
	$(RUN) $(BIN)/python scripts/build_architectures.py --check
	$(RUN) $(BIN)/python scripts/build_substring_table.py --check

docs: install
	$(RUN) $(BIN)/python tests/behaviour_types.py
	$(RUN) $(BIN)/python scripts/build_docs.py
	$(RUN) $(BIN)/python scripts/build_architectures.py
	$(RUN) $(BIN)/python scripts/build_substring_table.py

clean:
	rm -rf .venv selectune-demo
