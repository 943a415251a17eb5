# SPDX-License-Identifier: Apache-2.0
# Needs Python 3.10 or newer with its headers, a C compiler and make; all else goes into the virtual environment .venv.

PYTHON ?= python3
TORCH ?= torch==2.13.0

VENV := .venv
PY := $(VENV)/bin/python
CHECK_CC := command -v $(CC) >/dev/null || { echo "no C compiler '$(CC)'; on Debian: apt-get install gcc; on macOS: xcode-select --install"; exit 1; }

C_SOURCES := $(wildcard csrc/*/*.c)
OBJC_SOURCES := $(wildcard csrc/*/*.m)
C_HEADERS := $(wildcard csrc/*/*.h)
C_FILES := $(wildcard csrc/*/*.[chm] tests/c/*.[ch] tests/ane_simulator/*.[chm] benchmarks/*.c)
C_TESTS := $(basename $(notdir $(wildcard tests/c/test_*.c)))

# Such settings make OpenBLAS take other kernels or thread counts than it does for others.
unexport OPENBLAS_CORETYPE OPENBLAS_L2_SIZE OPENBLAS_NUM_THREADS OMP_NUM_THREADS

CORES := $(shell getconf _NPROCESSORS_ONLN)
MAKEFLAGS += --jobs=$(CORES)
# $(call each,FILES,COMMAND with {} where the file stands): side by side, all of them or an error
each = printf '%s\n' $(1) | xargs -P $(CORES) -I{} sh -c '$(2) || exit 255'

.PHONY: build test test-c test-objc test-all sanitize cross lint fmt bench demo docs clean

build: $(VENV)/.build

demo: build
	$(VENV)/bin/neuralforge demo

test: test-c
	$(PY) -m pytest -m "not slow"

test-all: test-c $(VENV)/.oracles
	$(PY) -m pytest

docs: build
	$(PY) -m pytest tests/test_docs.py

bench: $(VENV)/.bench
	$(PY) benchmarks/figures.py $(SCRIPTS)

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .hypothesis src/*.egg-info src/neuralforge/_cpu.* src/neuralforge/_ane.*
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +

# --- the virtual environment: one stamp file for what is installed in it

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Python 3.10 or newer is needed; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s; open(os.path.join(s.get_path("include"), "Python.h"))' 2>/dev/null || \
	    { echo "$(PYTHON) has no C headers (Python.h); on Debian or Ubuntu: apt-get install python3-dev"; exit 1; }
	@$(CHECK_CC)
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(PY) -m pip install -q "pip>=21.3"  # older ones cannot install in place

# In place. A change of the C code alone needs no download: it is built with what the environment has.
$(VENV)/.build: pyproject.toml setup.py build_cpu.py build_ane.py $(OBJC_SOURCES) $(C_SOURCES) $(C_HEADERS) | $(PY)
	$(PY) -m pip install -q $(if $(filter pyproject.toml,$?),-e '.[test]',--no-build-isolation --no-deps -e .)
	@touch $@

$(VENV)/.lint: pyproject.toml | $(VENV)/.build
	$(PY) -m pip install -q --no-build-isolation -e '.[lint]'
	@touch $@

# torch by itself first: the version that $(TORCH) names has a build without GPU libraries on more machines.
$(VENV)/.oracles $(VENV)/.bench: $(VENV)/.%: pyproject.toml | $(VENV)/.build
	$(PY) -m pip install -q "$(TORCH)" || $(PY) -m pip install -q torch
	$(PY) -m pip install -q --no-build-isolation -e '.[$*]'
	@touch $@

# --- the C tests: with the BLAS library, with plain C products, and plain C under the sanitizers

export ASAN_OPTIONS = detect_leaks=0
export UBSAN_OPTIONS = halt_on_error=1:print_stacktrace=1

# $(1) variant, $(2) environment of build_cpu.py, which prints the flags
define c_variant
build/c/$(1)/flags: build_cpu.py Makefile | $(VENV)/.build
	@mkdir -p $$(@D)
	$(2) $(PY) build_cpu.py >$$@
build/c/$(1)/%.o: %.c $(C_HEADERS) build/c/$(1)/flags
	@mkdir -p $$(@D)
	@echo "cc $$@"; $(CC) -Icsrc -c $$< @build/c/$(1)/flags -o $$@
build/c/$(1)/test_%: build/c/$(1)/tests/c/test_%.o $(C_SOURCES:%.c=build/c/$(1)/%.o)
	@echo "cc $$@"; $(CC) $$^ @build/c/$(1)/flags -o $$@
.PRECIOUS: build/c/$(1)/%.o
endef
$(eval $(call c_variant,blas))
$(eval $(call c_variant,plain,NF_BLAS=none))
$(eval $(call c_variant,sanitize,NF_BLAS=none NF_SANITIZE=1))

run_c_tests = @for t in $(C_TESTS); do echo "== $$t ($(1))"; build/c/$(1)/$$t || exit 1; done

test-c: $(C_TESTS:%=build/c/blas/%) $(C_TESTS:%=build/c/plain/%)
	$(call run_c_tests,blas)
	$(call run_c_tests,plain)

# --- sanitizers: the C tests, then the extension under the Python tests that load files and run the engine

SANITIZED := build/sanitize/lib
PRELOAD = $(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libstdc++.so.6)

sanitize: build $(C_TESTS:%=build/c/sanitize/%)
	$(call run_c_tests,sanitize)
	NF_SANITIZE=1 $(PY) setup.py -q build --build-base build/sanitize --build-lib $(SANITIZED)
	LD_PRELOAD="$(PRELOAD)" PYTHONPATH=$(SANITIZED) \
	    $(PY) -m pytest -m "not slow" $(wildcard tests/test_formats_*.py tests/test_tokenizer*.py tests/test_damaged_files.py tests/test_cpu_engine.py tests/test_mil*.py)

# --- the bridge to the Neural Engine on GNUstep, against the simulator; needs clang, gobjc and libgnustep-base-dev

test-objc: $(VENV)/.cross
	NF_OBJC=1 $(PY) setup.py -q build --build-base build/objc --build-lib build/objc/lib
	NF_OBJC=1 PYTHONPATH=build/objc/lib $(PY) -m pytest $(addprefix tests/test_ane_,backend.py bridge.py cache.py check.py layers.py native.py simulator.py training.py)

# --- other machines: the C tests on emulated arm64 Linux, those of kernels also as older processors have it, and the C sources
# compiled for macOS, where nothing was run yet

CROSS_FLAGS = -std=c11 -O2 -ffp-contract=fast -fno-math-errno -Wall -Wextra -Werror -Wno-psabi -pthread -Icsrc
ARM := build/c/arm64

$(VENV)/.cross: pyproject.toml | $(VENV)/.build
	$(PY) -m pip install -q ziglang
	@touch $@

cross: $(VENV)/.cross
	@mkdir -p $(ARM) build/c/macos
	$(call each,$(C_SOURCES),aarch64-linux-gnu-gcc $(CROSS_FLAGS) -c {} -o $(ARM)/$$(echo {} | tr / _).o)
	$(call each,$(C_TESTS),aarch64-linux-gnu-gcc $(CROSS_FLAGS) -static tests/c/{}.c $(ARM)/*.o -o $(ARM)/{} -lm)
	for t in $(C_TESTS:%=max/%) $(foreach cpu,neoverse-n1 cortex-a53,$(cpu)/test_kernels $(cpu)/test_blocks); do \
	    echo "$$t"; qemu-aarch64-static -cpu $${t%/*} $(ARM)/$${t#*/} >$(ARM)/log; code=$$?; \
	    grep -E '^(FAIL|--)' $(ARM)/log; tail -n 1 $(ARM)/log; [ $$code -eq 0 ] || exit 1; done
	$(call each,$(C_SOURCES),$(PY) -m ziglang cc -target aarch64-macos.14.0 $(CROSS_FLAGS) -DNF_USE_ACCELERATE=1 \
	    -c {} -o build/c/macos/$$(basename {} .c).o)

# --- style

lint: $(VENV)/.lint build/c/blas/flags build/c/plain/flags
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	$(CC) -Werror -fsyntax-only -Icsrc $(C_SOURCES) $(wildcard tests/c/*.c benchmarks/*.c) @build/c/blas/flags
	$(CC) -Werror -fsyntax-only -Icsrc csrc/kernels/matmul.c @build/c/plain/flags

fmt: $(VENV)/.lint
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i $(C_FILES)
