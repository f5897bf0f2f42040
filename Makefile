PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
EXTRAS := .venv/.extras
SEQATTN_DATA ?= ../shared/data
CLEAN := $(wildcard $(SEQATTN_DATA)/speech/clean_*)
NOISE := $(wildcard $(SEQATTN_DATA)/speech/noise_*)

.PHONY: demo demo-speech demo-ehr test test-slow lint types gpu clean

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer; name one: make PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[dev]" -c constraints.txt
	@touch $@

$(EXTRAS): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[dev,speech,ehr,text]" -c constraints.txt
	@touch $@

demo: $(STAMP)
	@start=$$(date +%s); \
	$(BIN)/seqattn train classification --dataset BasicMotions && \
	echo "demo finished in $$(( $$(date +%s) - start )) s"

demo-speech: $(EXTRAS)
	@start=$$(date +%s); \
	$(BIN)/seqattn train speech --config mambattention-demo \
		$(if $(and $(CLEAN),$(NOISE)),$(addprefix --clean ,$(CLEAN)) $(addprefix --noise ,$(NOISE)),--synthetic) && \
	echo "demo finished in $$(( $$(date +%s) - start )) s"

demo-ehr: $(STAMP)
	@start=$$(date +%s); \
	SEQATTN_DATA=$(SEQATTN_DATA) $(BIN)/seqattn train ehr --config series-demo \
		--dataset $(if $(wildcard $(SEQATTN_DATA)/ehr/physionet2012),physionet2012,synthetic) && \
	echo "demo finished in $$(( $$(date +%s) - start )) s"

test: $(EXTRAS)
	@start=$$(date +%s); \
	$(BIN)/python -m pytest -q && \
	echo "tests finished in $$(( $$(date +%s) - start )) s"

test-slow: $(EXTRAS)
	@start=$$(date +%s); \
	$(BIN)/python -m pytest -q -m slow && \
	echo "slow tests finished in $$(( $$(date +%s) - start )) s"

lint: $(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(EXTRAS)
	$(BIN)/mypy

gpu: $(EXTRAS)
	$(BIN)/python -m pytest -q -k gpu -m ""
	$(BIN)/python benchmarks/mptsnet.py --device cuda --json benchmarks/results
	$(BIN)/python benchmarks/selective_scan.py --device cuda --json benchmarks/results
	$(BIN)/python benchmarks/wersa.py --device cuda --json benchmarks/results
	$(BIN)/python benchmarks/mambattention.py --device cuda --json benchmarks/results
	$(BIN)/python benchmarks/time_attention.py --device cuda --json benchmarks/results

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
