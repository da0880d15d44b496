# What a fresh machine needs: Python 3.11 and make. Everything else is made here.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made

.PHONY: demo test check lock system-deps examples bench clean

demo: $(STAMP)
	@$(BIN)/gusset demo $(if $(DEMO_ONCE),--once)

test: $(STAMP) check examples
	$(BIN)/pytest -n auto --dist loadgroup $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Real transformers and torch, in environments of their own, for examples/.
examples: $(STAMP)
	$(BIN)/python -m tests.examples.environments

bench: $(STAMP)
	$(BIN)/python bench/run.py

# What Debian's packages give (a browser and a container engine for tests among them): needs root.
system-deps:
	@./scripts/system-deps

lock:
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  pyproject.toml -o requirements/core.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  pyproject.toml --group dev -o requirements/dev.txt

$(STAMP): requirements/dev.txt pyproject.toml
	@echo "making $(VENV) (once; takes a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .venv-examples .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
