# The commands of a developer. `make demo` and `make test` are all that a fresh machine with Python 3.11 or newer needs.
#
# Every target that runs Python depends on a stamp inside .venv, so that the environment is made on first use and again when
# pyproject.toml or constraints.txt change. Nothing is installed outside .venv except the Debian packages named below, and these
# only when running as root; otherwise the message says what to install.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The tests start hundreds of processes: what is compiled once is kept, also where the environment says otherwise.
export PYTHONDONTWRITEBYTECODE :=
# Debian puts the servers of a file system where the PATH of an ordinary user does not look.
export PATH := $(PATH):/usr/sbin:/sbin

# pytest's selection; `make test MARK='not soak and not pfs and not browser'` leaves out what needs programs that only root can install.
MARK ?= not soak
# A file runs in one process, so that its servers are started once. Two processes more than there are cores: tests wait for disks, servers
# and retries a good part of their time; a third one more makes it slower. Long files come first (tests/conftest.py), in that order.
WORKERS ?= $(shell echo $$(( $$(nproc) + 2 )))
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Those that draw their examples: the same ones in every `make test`, new ones in `make soak`.
PROPERTY_TESTS = $(shell grep -rl '^from hypothesis' --include='test_*.py' tests)
DEMO_ARGS ?=

# $(call require,PROGRAM=DEBIAN_PACKAGE …,WHAT FOR): install what is missing when root, else say what to install.
define require
@missing=; for pair in $(1); do command -v "$${pair%%=*}" >/dev/null || missing="$$missing $${pair##*=}"; done; \
if [ -z "$$missing" ]; then exit 0; fi; \
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  echo "make: installing$$missing, for $(2)" >&2; \
  export DEBIAN_FRONTEND=noninteractive; \
  apt-get -qq update </dev/null >/dev/null && apt-get -qq install -y --no-install-recommends $$missing </dev/null >/dev/null; \
else \
  echo "make: $(2) need the Debian packages$$missing; install them as root: apt-get install$$missing" >&2; exit 1; \
fi
endef

PFS_PROGRAMS := mfsmaster=moosefs-master mfschunkserver=moosefs-chunkserver mfsmount=moosefs-client

.PHONY: help setup debian check test soak demo bench clean

help:
	@echo 'make demo    train, kill, resume from memory, NVMe and S3, and compare with an uninterrupted run'
	@echo 'make test    ruff, mypy and the tests'
	@echo 'make check   ruff and mypy only'
	@echo 'make soak    the long tests: hundreds of random kills, and new examples for the property tests'
	@echo 'make bench   the figures of docs/bench.md, measured on this machine (BENCH_ARGS="--only NAME")'
	@echo 'make setup   the virtual environment and the Debian packages that the tests need'
	@echo 'make clean   remove the virtual environment and all caches'

setup: $(INSTALLED) debian

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("make: ckptstore needs Python 3.11 or newer, this is %s; try make PYTHON=python3.12" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo 'make: this Python cannot make virtual environments; on Debian, install python3-venv' >&2; exit 1; }
	@echo 'make: installing into $(VENV) (some minutes the first time)' >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check -c constraints.txt -e '.[test]'
	@# Its own dependencies bring wandb and tensorboard, and hold datasets back; what its checkpointer needs is in [test].
	@$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --no-deps torchtitan==0.3.0
	@touch $@

debian:
	$(call require,fio=fio,the tests of the bench)
ifeq (0,$(shell id -u))
	$(call require,rsync=rsync setpriv=util-linux,the tests of the mount)
endif
ifeq (,$(findstring not browser,$(MARK)))
	$(call require,chromium=chromium,the tests that open a report in a browser)
endif
ifeq (,$(findstring not pfs,$(MARK)))
	$(call require,$(PFS_PROGRAMS),the tests on a distributed file system)
endif

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check debian
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --hypothesis-profile=same -m '$(MARK)' $(PYTEST_ARGS)

soak: $(INSTALLED) debian
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m 'not soak' $(PYTEST_ARGS) $(PROPERTY_TESTS)
	$(BIN)/python -m pytest -q --timeout 3600 -m soak $(PYTEST_ARGS)

demo: $(INSTALLED)
	$(BIN)/python -m ckptstore_bench.demo $(DEMO_ARGS)

bench: $(INSTALLED)
	$(call require,fio=fio,the figures beside the raw disk)
	$(BIN)/ckptstore bench figures $(BENCH_ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .make build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
