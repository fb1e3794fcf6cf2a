# ModelMora's tasks. `make` alone lists them. Each prepares .venv by itself.
# PYTHON=/path/to/python3.11 chooses the interpreter (3.10 to 3.12).

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
SOURCES := controlplane converters backends tests examples benchmarks

.PHONY: help demo serve test lint format types imports bench protos clean

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp instead of .PHONY: dependencies are installed again only when their lists change.
$(INSTALLED): pyproject.toml constraints.txt
	@set -e; python="$(PYTHON)"; \
	for candidate in $${python:-python3.12 python3.11 python3.10 python3 python}; do \
	  if "$$candidate" -c '$(SUPPORTED)' 2>/dev/null; then found="$$candidate"; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "ModelMora needs Python 3.10, 3.11 or 3.12$${python:+, and $$python is not one}." \
	    "Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! $(BIN)/python -c '$(SUPPORTED)' 2>/dev/null; then \
	  echo "Creating $(VENV) with $$found …"; \
	  "$$found" -m venv --clear $(VENV) || { \
	    echo "$$found cannot create virtual environments (on Debian: apt install python3-venv)." >&2; exit 1; }; \
	fi; \
	echo "Installing ModelMora into $(VENV) (some minutes the first time) …"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	touch $@

demo: $(INSTALLED) ## start everything, embed three sentences, go on serving (DEMO_ONCE=1: stop)
	@exec $(BIN)/python examples/demo.py

serve: $(INSTALLED) ## start the server with ./modelmora.yaml or the defaults
	@exec $(BIN)/modelmora serve

test: $(INSTALLED) ## run all tests with coverage
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-fail-under=90

lint: $(INSTALLED) ## check style and formatting
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))

format: $(INSTALLED) ## format, and fix what can be fixed
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))

types: $(INSTALLED) ## check types
	$(BIN)/mypy

imports: $(INSTALLED) ## check which module may import which
	$(BIN)/lint-imports

bench: $(INSTALLED) ## measure; see docs/benchmarks.md
	$(BIN)/python -m benchmarks

protos: $(INSTALLED) ## generate protos/modelmora/v1/*_pb2.py of the .proto files
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. protos/modelmora/v1/*.proto

clean: ## remove the environment, caches and the demo's data (not your models)
	rm -rf $(VENV) .modelmora/demo build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache \
	  .hypothesis .import_linter_cache htmlcov .coverage .coverage.*
	find $(wildcard $(SOURCES)) -name __pycache__ -type d -prune -exec rm -rf {} +
