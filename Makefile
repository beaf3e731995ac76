# Two commands for everybody: `make demo` and `make check`.  Each makes .venv and installs what it needs.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo check mypy pyright natlab-matrix natlab-scenarios fuzz mutations bench docs fmt clean
# pyright and its node are wheels from PyPI; this keeps it from asking another registry whether there is a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

BIN := .venv/bin
PYTEST_ARGS ?=
# The first run checks every annotation as the code runs; what runs in programs of its own, and what goes on by the thousand, shows
# it no more.  What neither measures nor needs this machine's quiet runs side by side, in more processes than there are cores, since
# most of it waits; the laboratory in two; the rest in turn.
COUNTS := .pytest_counts
pytest = $(BIN)/python -m pytest --quiet --junit-xml=$(COUNTS)/$(1).xml
JOBS ?= 3
SIDE_BY_SIDE := --numprocesses=$(JOBS) --dist=loadfile --timeout=60
TIGHT := tests/natlab/test_net_tcp.py tests/natlab/test_birthday.py
TWO_LABS := --numprocesses=2 --dist=loadfile $(TIGHT:%=--ignore=%)
COVER := --cov --cov-report=
TYPES := --typeguard-packages=p2ptunnel -m "not (e2e or bulk)" --ignore=tests/unit/bench
step = @printf '\n== %s\n' '$(1)'

help: ## show this text
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

demo: .venv/demo.stamp ## two machines behind two NATs find each other and open a tunnel, on this machine
	@scripts/system-tools
	@$(BIN)/python -m p2ptunnel.testing.demo

# some environments forbid compiled files: then each of some hundred programs and processes would compile all of this anew
check: export PYTHONDONTWRITEBYTECODE :=
check: .venv/check.stamp ## format, lint, types, layers, spelling, all tests, coverage: what CI runs
	$(call step,system tools)
	@scripts/system-tools
	$(call step,ruff format)
	@$(BIN)/ruff format --check .
	$(call step,ruff check)
	@$(BIN)/ruff check .
	$(call step,mypy and pyright)
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target mypy pyright
	$(call step,lint-imports)
	@$(BIN)/lint-imports
	$(call step,codespell)
	@$(BIN)/codespell
	$(call step,pytest with every annotation checked at run time)
	@rm -rf $(COUNTS)
	@HYPOTHESIS_PROFILE=types $(call pytest,types) $(SIDE_BY_SIDE) $(TYPES) tests/unit tests/property tests/contract $(PYTEST_ARGS)
	$(call step,pytest side by side)
	@$(call pytest,side-by-side) $(SIDE_BY_SIDE) $(COVER) tests/unit tests/property tests/contract tests/simnet $(PYTEST_ARGS)
	$(call step,pytest in the laboratory)
	@$(call pytest,laboratory) $(TWO_LABS) $(COVER) --cov-append tests/natlab $(PYTEST_ARGS)
	$(call step,pytest in turn)
	@$(call pytest,in-turn) $(COVER) --cov-append $(TIGHT) tests/e2e tests/security $(PYTEST_ARGS)
	$(call step,coverage of wire and protocol)
	@$(BIN)/coverage report --include='p2ptunnel/wire/*,p2ptunnel/protocol/*' --fail-under=95
	$(call step,tests)
	@$(BIN)/python -m scripts.count_tests $(COUNTS)

mypy:
	@$(BIN)/mypy

pyright:
	@$(BIN)/pyright --pythonpath $(BIN)/python

NATLAB_ARGS ?=
natlab-matrix: .venv/check.stamp ## every kind of NAT against every other, in network namespaces; writes docs/nat-matrix.md (root)
	@scripts/system-tools
	@$(BIN)/python -m bench.matrix $(NATLAB_ARGS)

natlab-scenarios: .venv/check.stamp ## networks as they are met: what connects there, how fast; writes docs/nat-scenarios.md (root)
	@scripts/system-tools
	@$(BIN)/python -m bench.scenarios --at-once 16 $(NATLAB_ARGS)

FUZZ_SECONDS ?= 20
fuzz: .venv/check.stamp ## hostile bytes for everything that reads what others wrote; FUZZ_SECONDS for each of them
	@$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)

mutations: .venv/check.stamp ## take every defence away in a copy, and see its test fail; writes docs/security/attacks.md
	@$(BIN)/python -m scripts.mutate_defences

BENCH_ARGS ?=
bench: .venv/check.stamp ## this and what people use instead on the same work, in one run; writes docs/performance.md (root)
	@$(BIN)/python -m bench $(BENCH_ARGS)

docs: .venv/docs.stamp ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

fmt: .venv/check.stamp ## format, mend what ruff can mend, renew the parts of docs/ that are made from the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/python -m scripts.write_reference

clean: ## remove all that these commands made
	rm -rf .venv .bench site build dist .coverage .coverage.* $(COUNTS) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find p2ptunnel tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/demo.stamp: pyproject.toml scripts/make-venv
	@scripts/make-venv ssh $@

.venv/check.stamp: pyproject.toml scripts/make-venv
	@scripts/make-venv dev $@

.venv/docs.stamp: pyproject.toml scripts/make-venv
	@scripts/make-venv docs $@
