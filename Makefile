PYTHON ?= python3
BIN := .venv/bin
DIGITS := --config=configs/ddpm/digits.py

.PHONY: demo test test-prepare

# Train on real digits, compute their statistics, and score three samplers with and without a late start.
demo: .venv/installed
	$(BIN)/python main.py --mode=train $(DIGITS) --workdir=results/digits
	$(BIN)/python main.py --mode=fid_stats $(DIGITS)
	$(BIN)/python main.py --mode=sweep $(DIGITS) --workdir=results/digits

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest

# The tests that prepare a data set of TensorFlow Datasets: they need TensorFlow, which nothing else does.
test-prepare: .venv/installed-prepare
	$(BIN)/pytest tests/test_datasets_prepared.py

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r $<
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/pip install --quiet -r $<
	touch $@

.venv/installed-prepare: requirements-prepare.txt .venv/installed-dev
	$(BIN)/pip install --quiet -r $<
	touch $@
