# make demo | test | torture | sanitized | simulate | simulate-coverage | scenarios | commands | fuzz | fuzz-long | bench | bench-micro | build | clean.
# Needs make, a C compiler and Python 3.11 with venv and headers, and clang to fuzz; all else comes from the package index
# into .venv.
# `make PYTHON=/usr/bin/python3` picks another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(wildcard native/*.* native/include/kv/*.h native/src/*.[ch] native/python/*.[ch])
PY_DIRS := $(wildcard kvsvr tests demo bench native/*.py native/fuzz/*.py)
FLAVOURS := plain asan tsan
SANITIZE_asan := address,undefined
SANITIZE_tsan := thread
SANITIZED := asan tsan
FUZZ := $(patsubst native/fuzz/fuzz_%.c,%,$(wildcard native/fuzz/fuzz_*.c))
# The same inputs each time: landing is not to hang on what chance, or a faster machine, finds. fuzz-long looks elsewhere.
FUZZ_LIMIT ?= -runs=15000 -seed=1
FUZZ_LEARNT ?= build/fuzz/new
CLANG ?= clang

# cmake and ninja of .venv first: a machine may have old ones, or none.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: build test torture sanitized $(SANITIZED:%=sanitized-%) simulate simulate-coverage scenarios commands lint c-tests demo bench bench-harness bench-replica bench-micro clean \
    fuzz fuzz-long $(FUZZ:%=fuzz-%) $(FLAVOURS:%=c-tests-%)

build: $(VENV)/built

demo: build
	$(BIN)/python -m demo

# Everything that CI runs. pytest comes last: it runs the C tests of all three builds, too, and fails (5) if there
# is nothing to run.
test: $(VENV)/tested lint c-tests
	$(BIN)/python -m pytest

# The long version: crash images, kills, threads, the state machine. Hours; the figures go to build/torture/*.log.
IMAGES := 5000000
KILLS := 10000
torture: SHELL := /bin/bash
torture: .SHELLFLAGS := -eo pipefail -c
torture: $(VENV)/tested c-tests-plain
	@mkdir -p build/torture
	KV_CRASH_IMAGES=$(IMAGES) build/plain/test_crash 2>&1 | tee build/torture/images.log
	KVSVR_KILLS=$(KILLS) $(BIN)/python -m pytest tests/store/test_processes.py -k killed -s 2>&1 | tee build/torture/kills.log
	KVSVR_FAULT_ROUNDS=500 $(BIN)/python -m pytest tests/cluster/test_faults.py --timeout 7200 2>&1 | tee build/torture/faults.log
	KVSVR_ONCE_SECONDS=3600 $(BIN)/python -m pytest tests/client/test_once.py -k owners -s --timeout 7200 2>&1 \
	    | tee build/torture/once.log
	$(BIN)/python -m tests.cluster.gap --kills 1000 2>&1 | tee build/torture/gap.log
	KVSVR_THREAD_SECONDS=600 $(BIN)/python -m pytest tests/store/test_threads.py -s 2>&1 | tee build/torture/threads.log
	KVSVR_HYPOTHESIS_EXAMPLES=20000 $(BIN)/python -m pytest tests/store/test_state_machine.py 2>&1 \
	    | tee build/torture/machine.log

# Replica processes with a core that was built with a sanitizer, under the loads that reach most of it; without the one test that
# writes 200 MB to fill a disk.
sanitized: $(SANITIZED:%=sanitized-%)

$(SANITIZED:%=sanitized-%): sanitized-%: $(VENV)/tested
	cmake -S native -B build/ext-$* -G Ninja -DKV_SANITIZE=$(SANITIZE_$*) -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	cmake --build build/ext-$*
	KVSVR_SANITIZED=build/ext-$* $(BIN)/python -m pytest --timeout 600 tests/cluster/test_sanitized.py tests/cluster/test_order.py \
	    tests/cluster/test_serve.py tests/cluster/test_commands.py tests/client/test_once.py -k 'not first_failed_write'

# The replica set in simulation, long: SEEDS at N = 3 and a fifth as many at N = 5. What was run is in build/simulate, so
# an interrupted run goes on where it was.
SEEDS ?= 100000
simulate: build/plain/build.ninja
	cmake --build build/plain --target simulate
	$(BIN)/python -m tests.sim.long --seeds $(SEEDS)

# Which branches of the replica core the simulation and its C tests take. Needs gcc, and gcov, which comes with it.
COVERED := replica lanes late list sessions version_log wire
simulate-coverage: build/coverage/build.ninja
	cmake --build build/coverage --target simulate \
	    $(patsubst native/tests/%.c,%,$(wildcard $(COVERED:%=native/tests/test_%*.c)))
	$(BIN)/python -m tests.sim.coverage

build/coverage/build.ninja: native/CMakeLists.txt | $(VENV)/tools
	CC=gcc CFLAGS=--coverage cmake -S native -B build/coverage -G Ninja -DCMAKE_BUILD_TYPE=Debug -DKV_EXTENSION=OFF -DKV_TESTS=ON

# docs/commands.md, from the table that the server runs by.
commands: build
	$(BIN)/python -m tests.node.commands_page

# The drawings of docs/protocol/scenarios.md, from what the transcript tests go through now.
scenarios: build/plain/build.ninja
	cmake --build build/plain --target test_replica test_replica_members test_replica_repair
	$(BIN)/python -m tests.sim.scenarios

lint: $(VENV)/tested
	$(BIN)/ruff check $(PY_DIRS)
	$(BIN)/ruff format --check $(PY_DIRS)
	$(BIN)/mypy $(PY_DIRS)

c-tests: $(FLAVOURS:%=c-tests-%)

$(FLAVOURS:%=c-tests-%): c-tests-%: build/%/build.ninja
	cmake --build build/$*

build/%/build.ninja: native/CMakeLists.txt | $(VENV)/tools
	cmake -S native -B build/$* -G Ninja -DKV_EXTENSION=OFF -DKV_TESTS=ON -DKV_SANITIZE=$(SANITIZE_$*)

# Each target over the same inputs, two at once; fuzz-long for ten minutes each from another seed, and what that learns stays
# in build/fuzz/work for the next. What is found is build/fuzz/found-*, and belongs into native/fuzz/corpus when it is mended.
fuzz: build/fuzz/build.ninja
	cmake --build build/fuzz
	@$(MAKE) --no-print-directory -j2 $(FUZZ:%=fuzz-%)

fuzz-long:
	@$(MAKE) --no-print-directory fuzz FUZZ_LIMIT='-max_total_time=600 -seed=0' FUZZ_LEARNT=build/fuzz/work

$(FUZZ:%=fuzz-%): fuzz-%:
	@rm -rf build/fuzz/new/$* && mkdir -p $(FUZZ_LEARNT)/$*
	@build/fuzz/fuzz_$* -runs=0 native/fuzz/corpus/$* >build/fuzz/$*.log 2>&1 \
	    && build/fuzz/fuzz_$* $(FUZZ_LIMIT) -timeout=10 -rss_limit_mb=3000 -print_final_stats=1 \
	        -artifact_prefix=build/fuzz/found-$*- $(FUZZ_LEARNT)/$* native/fuzz/corpus/$* >>build/fuzz/$*.log 2>&1 \
	    || { tail -n 60 build/fuzz/$*.log; exit 1; }
	@echo "$@: $$(grep DONE build/fuzz/$*.log | tail -n 1)"

build/fuzz/build.ninja: native/CMakeLists.txt | $(VENV)/tools
	@command -v $(CLANG) >/dev/null || { echo "no clang, which libFuzzer comes with: apt-get install clang" >&2; exit 1; }
	CC=$(CLANG) cmake -S native -B build/fuzz -G Ninja -DKV_EXTENSION=OFF -DKV_FUZZ=ON

bench: $(VENV)/tested
	$(BIN)/python -m bench

# Single calls of kvsvr, by pytest-benchmark; BENCH_MICRO="--benchmark-compare" and the like are handed on.
bench-micro: $(VENV)/tested
	$(BIN)/python -m pytest bench/micro --benchmark-storage=file://build/benchmarks $(BENCH_MICRO)

# The core's own cost in C, for `python -m bench boundary`.
bench-harness: | $(VENV)/tools
	cmake -S native -B build/bench -G Ninja -DKV_EXTENSION=OFF -DKV_BENCH=ON
	cmake --build build/bench --target kv_harness

# A set of three replicas in one process, no sockets: without a disk, and with one sync for each replica and batch.
bench-replica: | $(VENV)/tools
	cmake -S native -B build/bench -G Ninja -DKV_EXTENSION=OFF -DKV_BENCH=ON
	cmake --build build/bench --target kv_replica_bench
	build/bench/kv_replica_bench -r 3 build/bench
	build/bench/kv_replica_bench -r 3 -n 20000 -s build/bench

$(VENV)/tools:
	@command -v cc >/dev/null || { echo "no C compiler: apt-get install gcc" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "no venv: apt-get install python3-venv" >&2; exit 1; }
	@test -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
	    || { echo "no Python.h: apt-get install python3-dev" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'scikit-build-core>=0.10' 'cffi>=1.16' 'cmake>=3.20' ninja
	touch $@

# Without isolation, so that what is built stays in build/ and only what changed is built again.
$(VENV)/built: $(VENV)/tools pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[cli,demo]'
	touch $@

# With the stores that bench compares with, so that no adapter goes untested.
$(VENV)/tested: $(VENV)/built
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[bench,cli,demo,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find kvsvr tests -name __pycache__ -type d -exec rm -rf {} +
