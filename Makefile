# make demo | test | bench | build | clean. Needs make, a C compiler and Python 3.11 with venv and headers; all else
# comes from the package index into .venv. `make PYTHON=/usr/bin/python3 ...` picks another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(wildcard native/*.* native/include/kv/*.h native/src/*.[ch])
PY_DIRS := $(wildcard kvsvr tests demo bench native/*.py)
FLAVOURS := plain asan tsan
SANITIZE_asan := address,undefined
SANITIZE_tsan := thread

# cmake and ninja of .venv first: a machine may have old ones, or none.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: build test lint c-tests demo bench bench-harness clean $(FLAVOURS:%=c-tests-%)

build: $(VENV)/built

demo: build
	$(BIN)/python -m demo

# Everything that CI runs. pytest comes last: it runs the C tests of all three builds, too, and fails (5) if there
# is nothing to run.
test: $(VENV)/tested lint c-tests
	$(BIN)/python -m pytest

lint: $(VENV)/tested
	$(BIN)/ruff check $(PY_DIRS)
	$(BIN)/ruff format --check $(PY_DIRS)
	$(BIN)/mypy $(PY_DIRS)

c-tests: $(FLAVOURS:%=c-tests-%)

$(FLAVOURS:%=c-tests-%): c-tests-%: build/%/build.ninja
	cmake --build build/$*

build/%/build.ninja: native/CMakeLists.txt | $(VENV)/tools
	cmake -S native -B build/$* -G Ninja -DKV_EXTENSION=OFF -DKV_TESTS=ON -DKV_SANITIZE=$(SANITIZE_$*)

bench: $(VENV)/tested
	$(BIN)/python -m bench

# The core's own cost in C, for `python -m bench boundary`.
bench-harness: | $(VENV)/tools
	cmake -S native -B build/bench -G Ninja -DKV_EXTENSION=OFF -DKV_BENCH=ON
	cmake --build build/bench --target kv_harness

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
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find kvsvr tests -name __pycache__ -type d -exec rm -rf {} +
