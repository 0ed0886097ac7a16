# Needs python3 >= 3.11 and make. Everything else comes from requirements/*.lock, into .venv.
#
#   make demo      run the main job on a demonstration file
#   make qemu      install QEMU by apt, if it is missing and this user may (a part of `make test`)
#   make test      run all tests, pure and compiled
#   make lint      ruff, mypy and the changelog's fragments
#   make doctest   the examples in the documentation and in the docstrings
#   make bench     the benchmarks, compiled
#   make test-all  `make test` under every python3.11 .. 3.14 on the PATH
#   make lock      renew requirements/*.lock from pyproject.toml
#   make clean     remove everything that was made

PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
# Idle workers take over tests of the others: those that run a whole suite on a machine take a minute each.
PYTEST_ARGS ?= --numprocesses=auto --dist=worksteal

PY := $(VENV)/bin/python
PIP_INSTALL := -m pip --disable-pip-version-check --no-input install -qq
COMPILED := $(BUILD)/compiled
COMPILED_PY := $(COMPILED)/venv/bin/python
QEMU_TARGETS := x86_64 aarch64 sparc sparc64 alpha mips64 mips64el
QEMU_PACKAGES := qemu-system-x86 qemu-system-arm qemu-system-sparc qemu-system-misc qemu-system-mips
PACKAGE := pyproject.toml setup.py MANIFEST.in README.md LICENSE
SOURCES := $(PACKAGE) $(shell find src -name '*.py' -o -name '*.pxd' -o -name '*.c' -o -name py.typed)

# A PYTHONPATH of the user's would put another busdma before the one under test.
unexport PYTHONPATH PYTHONHOME

.PHONY: demo qemu test test-pure test-compiled test-all compiled lint doctest bench lock clean help
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   make/make/p' Makefile

# --- environments: stamps, so that nothing is installed twice ---

define check_python
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON): install Python 3.11 or later, or say make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), but busdma needs Python 3.11 or later: say make PYTHON=python3.x" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make a virtual environment: install python3-venv (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
endef

$(VENV)/.made:
	$(check_python)
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Editable and pure: a compiled module would shadow the file that is being edited.
$(VENV)/.package: $(VENV)/.made requirements/build.lock pyproject.toml setup.py
	$(PY) $(PIP_INSTALL) -r requirements/build.lock
	BUSDMA_COMPILE=never $(PY) $(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.package requirements/test.lock
	$(PY) $(PIP_INSTALL) -r requirements/test.lock
	@touch $@

$(VENV)/.dev: $(VENV)/.test requirements/dev.lock
	$(PY) $(PIP_INSTALL) -r requirements/dev.lock
	@touch $@

$(COMPILED)/.test: requirements/test.lock
	$(check_python)
	$(PYTHON) -m venv $(COMPILED)/venv
	$(COMPILED_PY) $(PIP_INSTALL) -r requirements/test.lock
	@touch $@

# The wheel is built from the sdist, so that it holds what a user would get.
$(COMPILED)/.package: $(COMPILED)/.test $(SOURCES)
	@missing=$$($(COMPILED_PY) tools/toolchain.py) || { echo "the compiled form cannot be built, because $$missing" >&2; exit 1; }
	rm -rf $(COMPILED)/dist
	BUSDMA_COMPILE=require $(COMPILED_PY) -m build --no-isolation --outdir $(COMPILED)/dist . >$(COMPILED)/build.log 2>&1 || \
	  { tail -n 40 $(COMPILED)/build.log >&2; exit 1; }
	$(COMPILED_PY) $(PIP_INSTALL) --no-deps --no-index --force-reinstall $(COMPILED)/dist/*.whl
	@touch $@

compiled: $(COMPILED)/.package

# --- what people run ---

demo: $(VENV)/.package
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	$(PY) -c 'import random, sys; open(sys.argv[1], "wb").write(random.Random(1998).randbytes(1_000_003))' "$$dir/demo.bin" && \
	echo "busdma matrix demo.bin --machine 'sim:*'    (1000003 bytes through the drivers of every simulated machine)" && \
	$(VENV)/bin/busdma matrix "$$dir/demo.bin" --machine 'sim:*'

test: test-pure test-compiled

# Debian's and Ubuntu's, from their own archive; elsewhere, and for who may not install, the tests say what is missing.
qemu:
	@lacking=$$(for target in $(QEMU_TARGETS); do command -v qemu-system-$$target >/dev/null || echo $$target; done); \
	if [ -z "$$lacking" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as=; elif sudo -n true 2>/dev/null; then as=sudo; else as=nobody; fi; \
	if [ "$$as" = nobody ] || ! command -v apt-get >/dev/null; then \
	  echo "QEMU for" $$lacking "is missing, and cannot be installed from here: apt install $(QEMU_PACKAGES)"; exit 0; \
	fi; \
	echo "== QEMU, by apt-get" && $$as apt-get -qq update && \
	DEBIAN_FRONTEND=noninteractive $$as apt-get -qq install --yes --no-install-recommends $(QEMU_PACKAGES) >/dev/null

test-pure: qemu $(VENV)/.test
	@echo "== tests, pure Python"
	BUSDMA_EXPECT_COMPILED=0 $(PY) -m pytest $(PYTEST_ARGS)

# From outside the tree, against the installed wheel.
test-compiled: qemu $(VENV)/.test
	@if missing=$$($(PY) tools/toolchain.py); then \
	  $(MAKE) --no-print-directory compiled && \
	  echo "== tests, compiled" && \
	  cd $(COMPILED) && BUSDMA_EXPECT_COMPILED=1 \
	    venv/bin/python -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(CURDIR)/tests $(PYTEST_ARGS); \
	elif [ "$$CI" = true ]; then \
	  echo "tests, compiled: failed, because $$missing" >&2; exit 1; \
	else \
	  echo "tests, compiled: skipped, because $$missing"; \
	fi

test-all:
	@for version in 3.11 3.12 3.13 3.14; do \
	  if python$$version -c '' 2>/dev/null; then \
	    echo "== python$$version" && \
	    $(MAKE) --no-print-directory test PYTHON=python$$version VENV=build/$$version/venv BUILD=build/$$version || exit 1; \
	  else \
	    echo "== python$$version is not here"; \
	  fi; \
	done

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict src tests tools
	@draft=$$($(PY) -m towncrier build --draft --version draft 2>&1) || { echo "$$draft" >&2; exit 1; }

doctest: $(VENV)/.test
	$(PY) -m pytest --doctest-modules --doctest-glob='*.md' --ignore-glob='*/__main__.py' --ignore-glob='*/conformance/*' src/busdma README.md docs $(PYTEST_ARGS)

bench: compiled
	$(COMPILED)/venv/bin/busdma bench load

# --- upkeep ---

UV_COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
  --no-emit-index-url --no-annotate --custom-compile-command "make lock"

lock:
	$(check_python)
	$(PYTHON) -m venv build/lock
	build/lock/bin/python $(PIP_INSTALL) 'uv>=0.8'
	build/lock/bin/uv $(UV_COMPILE) --group test --group lint --group changelog -o requirements/dev.lock
	build/lock/bin/uv $(UV_COMPILE) --group test -c requirements/dev.lock -o requirements/test.lock
	build/lock/bin/uv $(UV_COMPILE) --group build -c requirements/dev.lock -o requirements/build.lock

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools -name __pycache__ -prune -exec rm -rf {} +
