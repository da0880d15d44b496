# What a fresh machine needs: Python 3.11 and make. Everything else is installed into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
# Tests of servers mostly wait for processes and timers: two workers for each core. A worker runs whole files, and a new
# one would begin the file anew whose test has ended the last: none is started, and the run ends with that test.
WORKERS ?= $(shell expr 2 '*' `getconf _NPROCESSORS_ONLN`)
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(PYTEST_ARGS)

# Clusters of Ray: beside other tests, nodes take longer than Ray waits, and are taken for dead.
ONE_BY_ONE = $(BIN)/python -m pytest -n 0 $(PYTEST_ARGS)

# Thousands of processes of the tests import the same modules: they must find them compiled.
unexport PYTHONDONTWRITEBYTECODE

# What needs neither an engine, a browser, a large framework, nor root and the packages of `make system-deps`.
UNIT = not (engine or browser or ray or torch or truss or system)

# PostgreSQL as the system has it, the newest one; empty where there is none. `make test` uses that of a wheel: the
# targets `postgres` and `postgres-all` end with an error where there is no other, since they would repeat that.
SYSTEM_POSTGRES := $(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin)))
ON_SYSTEM_POSTGRES = postgres="$${GUSSET_TEST_POSTGRES:-$(SYSTEM_POSTGRES)}"; \
  if ! [ -x "$$postgres/postgres" ]; then \
    echo "there is no PostgreSQL in $${postgres:-/usr/lib/postgresql}: run \`make system-deps\` as root" >&2; exit 1; \
  fi; \
  GUSSET_TEST_DATABASE=postgres GUSSET_TEST_POSTGRES="$$postgres" $(PYTEST) -m "not sqlite"
# The part of tests/manager that .ci/run runs on both databases: routes, pages, keys, streams, durability, rotations,
# repeated requests. The rest takes 300 s of processor time; `make postgres-all` runs it, too, in a job of .github/workflows/ci.yml.
ON_POSTGRES = test_access test_api test_durable test_integrity test_keys test_login test_pages \
  test_provider_rotation test_repeated_requests test_session_tokens test_watch

.PHONY: help demo test matrix quick check unit system postgres postgres-all soak engines ray kubernetes browser examples-test examples bench compiled interpreted test-compiled dist image help-texts newest-schema lock system-deps clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## serve and call a model with a secret, in a temporary vault
	@$(BIN)/gusset demo $(if $(DEMO_ONCE),--once)

test: $(STAMP) check examples ## lint, types, and every test but those of `make matrix` and `make kubernetes`
	$(ONE_BY_ONE) -m ray tests/ray; ray=$$?; $(PYTEST) -m "not (truss or matrix or ray)" && exit $$ray

matrix: $(STAMP) examples ## promises that `make test` keeps, with one more engine, width or value; other targets run these, too
	$(PYTEST) -m "matrix"

quick: WORKERS = auto
quick: $(STAMP) check ## lint, types and the tests that start no server, browser, engine or torch
	$(PYTEST) -m "not (slow or server or engine or browser or torch or truss)"

check: $(STAMP) ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(STAMP) ## every test but those of engines, browser, Ray, torch, and of root and system packages
	$(PYTEST) -m "$(UNIT)"

system: $(STAMP) ## the tests that need root or packages of `make system-deps`, but for engines and browser
	$(PYTEST) -m "system and not (engine or browser or ray or torch or truss)"

postgres: $(STAMP) ## tests of vaults and managers on the system's PostgreSQL (GUSSET_TEST_POSTGRES names another)
	@$(ON_SYSTEM_POSTGRES) tests/faults/test_failover.py tests/vault/test_postgres.py \
	  $(ON_POSTGRES:%=tests/manager/%.py)

postgres-all: $(STAMP) ## every test of vaults and managers on the system's PostgreSQL; many minutes
	@$(ON_SYSTEM_POSTGRES) tests/vault tests/manager tests/faults/test_failover.py

soak: $(STAMP) ## 200 kills, a full load and a long pause, on PostgreSQL: takes half an hour
	GUSSET_TEST_KILLS=200 GUSSET_TEST_WRITES=200 GUSSET_TEST_PAUSE=60 \
	  $(BIN)/python -m pytest -s --durations=10 -o faulthandler_timeout=0 tests/faults/test_load.py tests/faults/test_outages.py

engines: $(STAMP) ## the tests that use a container engine
	$(PYTEST) -m "engine and not truss"

ray: $(STAMP) ## the tests that start clusters of Ray; one after the other, four minutes
	$(ONE_BY_ONE) -m "ray and not torch" tests/ray

kubernetes: $(STAMP) ## build Kubernetes 1.20 from Debian's source (once; five minutes), and run models on it
	@$(BIN)/python -m tests.kubernetes.binaries
	GUSSET_TEST_KUBERNETES=1 $(BIN)/python -m pytest -s -o faulthandler_timeout=0 tests/kubernetes

browser: $(STAMP) ## the tests that use Chromium
	$(PYTEST) -m "browser and not truss"

examples-test: $(STAMP) examples ## the tests that use torch and transformers
	$(PYTEST) -m "torch and not truss"

examples: $(STAMP) ## make the environments of the examples (torch, transformers: 2 GB)
	$(BIN)/python -m tests.examples.environments

bench: $(STAMP) ## run all benchmarks but bench/peers.py, which installs other model servers first
	$(BIN)/python bench/run.py

compiled: $(STAMP) ## compile the hot modules by mypyc, next to their source; needs gcc and Python's headers
	@./scripts/compile

interpreted: ## remove compiled modules from src/: Python then runs the source again
	find src -name '*.so' -delete

test-compiled: compiled ## the tests of `make unit` on compiled modules, which it removes again
	$(PYTEST) -m "$(UNIT)" $(TESTS); status=$$?; \
	  find src -name '*.so' -delete; exit $$status

dist: $(STAMP) interpreted ## build wheels and sdist, install them into empty environments and try them; removes compiled modules
	$(BIN)/python scripts/dist

image: ## build the image of gusset itself, from packaging/Containerfile, with Docker or Podman
	$$(command -v podman || command -v docker) build -f packaging/Containerfile -t gusset $(IMAGE_ARGS) .

help-texts: $(STAMP) ## make src/gusset/cli/help_texts.py again, after a change of a command's help or options
	@$(BIN)/python scripts/help-texts > $(VENV)/help_texts.py
	@mv $(VENV)/help_texts.py src/gusset/cli/help_texts.py

newest-schema: $(STAMP) ## make src/gusset/vault/storage/newest_schema again, after a new migration
	@$(BIN)/python scripts/newest-schema src/gusset/vault/storage/newest_schema

lock: ## pin the dependencies again, with hashes
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  pyproject.toml -o requirements/core.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  pyproject.toml --extra postgres -o requirements/image.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  pyproject.toml --group dev -o requirements/dev.txt

system-deps: ## install the Debian packages that tests use: a browser, container engines (needs root)
	@./scripts/system-deps

# Without --no-compile pip compiles every module of every library, though most are never imported.
$(STAMP): requirements/dev.txt pyproject.toml
	@echo "making $(VENV) (once; takes a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile --require-hashes -r requirements/dev.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-build-isolation --no-deps -e . # its script starts faster than pip's
	@touch $(STAMP)

clean: interpreted ## remove everything that these targets made
	rm -rf $(VENV) .venv-examples .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
