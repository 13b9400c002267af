PYTHON ?= python3
BIN := .venv/bin
DIGITS := --config=configs/ddpm/digits.py
EMOJI := --config=configs/ddpm/emoji.py
FONT := $(wildcard /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf)
NETWORK ?= fashion_mnist
FASHION := --config=configs/ddpm/$(NETWORK).py

.PHONY: demo table figures test test-fast test-types test-prepare test-diffusers

# Trains briefly on real digits. Then scores three samplers, with and without a late start, on the fully trained network
# of assets/weights. If the font for emoji is installed, it also draws emoji from pure noise and from late starts.
demo: .venv/installed results/digits/config.json $(if $(FONT),results/emoji/config.json)
	$(BIN)/python main.py --mode=train $(DIGITS) --workdir=results/demo --config.training.n_iters=200
	$(BIN)/python main.py --mode=fid_stats $(DIGITS)
	$(BIN)/python main.py --mode=sweep $(DIGITS) --workdir=results/digits --config.sweep.t_starts="(300,500,700)" \
		--config.eval.num_samples=1000 --config.eval.batch_size=500
ifneq ($(FONT),)
	$(BIN)/python main.py --mode=fid_stats $(EMOJI) --config.eval.enable_fid=False --config.sampling.components=40
	$(BIN)/python -m experiments.pictures --config=emoji --dest=results/emoji
endif

results/digits/config.json: | .venv/installed
	$(BIN)/python main.py --mode=import $(DIGITS) --workdir=$(@D) --source=assets/weights/digits_8.npz

results/emoji/config.json: | .venv/installed
	$(BIN)/python main.py --mode=import $(EMOJI) --workdir=$(@D) --source=assets/weights/emoji_32.npz

# `make table` makes the paper's table on Fashion-MNIST, in an hour or more. `make figures` compares every solver at
# equal cost, in two hours or more. The same command continues an interrupted run.
table figures: results/$(NETWORK)/config.json
	$(BIN)/python main.py --mode=fid_stats $(FASHION)
	$(BIN)/python -m experiments.fashion_mnist $@ --config=$(NETWORK)

results/$(NETWORK)/config.json: | .venv/installed
	$(BIN)/python main.py --mode=import $(FASHION) --workdir=$(@D) --source=assets/weights/$(NETWORK)_28.npz

# Runs the tests of `make test` with all type and shape annotations checked at run time.
CHECKED := core,images,models,sampling,metrics,training,symmetry,configs,datasets,losses,evaluation,likelihood,run_lib
test-types: .venv/installed-dev
	$(BIN)/pytest --numprocesses=2 --dist=loadfile --jaxtyping-packages=$(CHECKED),typechecked.typechecked

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest --numprocesses=2 --dist=loadfile

# The tests that are useful while you edit a sampler.
SAMPLER_TESTS := tests/test_layout.py tests/core/test_diffusion.py tests/sampling/test_sampling.py \
	tests/sampling/test_time_grid.py tests/sampling/test_late_start.py
test-fast: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/pytest --numprocesses=2 --dist=loadfile $(SAMPLER_TESTS)

# The tests that prepare a data set of TensorFlow Datasets. Only they need TensorFlow.
test-prepare: .venv/installed-prepare
	$(BIN)/pytest tests/images/test_tfds_source.py

# The tests that compare images with diffusers and verify its DDIM. Only they need torch and diffusers.
test-diffusers: .venv/installed-diffusers
	$(BIN)/pytest tests/test_start_file.py tests/sampling/verification

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

.venv/installed-diffusers: requirements-diffusers.txt .venv/installed-dev
	$(BIN)/pip install --quiet -r $<
	touch $@
