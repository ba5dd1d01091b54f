# What can be done here: `make help`. Needs Python 3.11 or newer, nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# Test processes at a time, and threads of the libraries inside each.
JOBS ?= 2
DEMO_ARGS ?=
AUDIT_ARGS ?=
STAGES ?=
IMAGES_ARGS ?=
PYTEST_ARGS ?=
export OMP_NUM_THREADS ?= 1
export TF_CPP_MIN_LOG_LEVEL ?= 2

BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help
help: ## show this list
	@echo "make …"
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  %-16s %s\n", $$1, $$2 }'

.PHONY: venv
venv: $(STAMP) ## make the environment .venv with exact versions (requirements.lock)

NATIVE := $(wildcard services/happyneurons/ffn/native/*.[ch]pp)

# uv takes seconds where pip takes minutes; pip does it where uv cannot be had. The kernels in C++ are built where there
# is a compiler.
$(STAMP): requirements.lock pyproject.toml setup.py $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "HAPPYNeurons needs Python 3.11 or newer; say which: make PYTHON=python3.12 …" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "→ making .venv"; $(PYTHON) -m venv .venv; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install -q uv >/dev/null 2>&1 || true
	@echo "→ installing requirements.lock into .venv (a minute or two, once)"
	@if [ -x $(BIN)/uv ] && $(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements.lock; \
	 then $(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .; \
	 else $(BIN)/python -m pip install -qq -r requirements.lock && $(BIN)/python -m pip install -qq --no-deps -e .; fi
	@touch $@

.PHONY: demo
demo: $(STAMP) ## from raw tiles to neurons, on a phantom: writes demo/ (5 minutes)
	@$(BIN)/hpn demo $(DEMO_ARGS)

.PHONY: test
test: $(STAMP) ## unit tests (10 minutes at most)
	@$(BIN)/python -m pytest tests -q -m "not slow" -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

.PHONY: integration
integration: $(STAMP) ## tests against real parts: S3, MPI, a browser; and the slow ones
	@$(BIN)/python -m pytest tests integration_tests -q -m "(slow or integration) and not hpc" \
	    -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

.PHONY: integration-hpc
integration-hpc: $(STAMP) ## a real Balsam on a real Slurm, containers (installs them: root, Debian)
	@scripts/hpc-install
	@HPN_IMAGES_DIR=$${HPN_IMAGES_DIR:-$(CURDIR)/.hpc/images} \
	    $(BIN)/python -m pytest integration_tests/hpc -q -m hpc -n $(JOBS) --dist loadfile \
	    --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: lint
lint: $(STAMP) ## ruff, mypy, import rules, buf, protos and boards up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code >/dev/null
	$(BIN)/buf breaking --against protos/v1.binpb
	scripts/protos --check
	$(BIN)/python -m charts.boards --check

.PHONY: format
format: $(STAMP) ## put code and protos into their one form
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/buf format -w

.PHONY: protos
protos: $(STAMP) ## generate services/happyneurons/v1 from protos/
	scripts/protos

.PHONY: promise
promise: $(STAMP) ## what clients of v1 may rely on from now on: lint refuses protos that break it
	$(BIN)/buf build -o protos/v1.binpb

.PHONY: client-wheel
client-wheel: $(STAMP) ## the client alone, as a wheel: dist/happyneurons_client-….whl
	@scripts/client-wheel

.PHONY: boards
boards: $(STAMP) ## write the Grafana boards charts/happyneurons/dashboards from charts/boards
	@$(BIN)/python -m charts.boards

TARGETS ?= 127.0.0.1:9090

.PHONY: monitoring
monitoring: $(STAMP) ## Prometheus with alert rules and boards, for looking (TARGETS="host:port …": servers' --metrics)
	@$(BIN)/python -m charts.monitoring $(TARGETS)

.PHONY: bench
bench: $(STAMP) ## benchmarks that need nothing but this environment: prints figures
	@for file in $(filter-out $(BENCH_HPC),$(wildcard benchmarks/*.py)); do echo "→ $$file"; $(BIN)/python "$$file"; done

BENCH_HPC := benchmarks/jobs.py benchmarks/online.py

.PHONY: bench-hpc
bench-hpc: $(STAMP) ## benchmarks on a real Balsam and Slurm (installs them: root, Debian)
	@scripts/hpc-install
	@for file in $(BENCH_HPC); do echo "→ $$file"; $(BIN)/python "$$file"; done

.PHONY: images
images: $(STAMP) ## an image for each stage and one for the control plane (STAGES="montage align": only these)
	@$(BIN)/python containers/images.py images $(STAGES) $(IMAGES_ARGS)

.PHONY: sif
sif: $(STAMP) ## SIF files of the images for Apptainer: build/sif (STAGES="montage align": only these)
	@$(BIN)/python containers/images.py sif $(STAGES) $(IMAGES_ARGS)

.PHONY: lock
lock: ## renew requirements.lock and containers/locks from pyproject.toml (LOCK_ARGS=--upgrade for newer versions)
	scripts/lock $(LOCK_ARGS)

LOCKS := requirements.lock $(filter-out %/tools.lock,$(wildcard containers/locks/*.lock))

.PHONY: sbom
sbom: $(STAMP) ## Python packages of each lock, as CycloneDX: build/sbom (images hold their own, with the system's)
	@$(BIN)/python containers/images.py sbom $(STAGES)

# --strict: a package that the service does not know is a failure, not a line in passing. AUDIT_ARGS="-s osv": another.
.PHONY: audit
audit: $(STAMP) ## known vulnerabilities of all locked packages (needs pypi.org, or AUDIT_ARGS="-s osv": osv.dev)
	@for lock in $(LOCKS); do echo "→ $$lock"; \
	    $(BIN)/uv tool run -q --from 'pip-audit>=2.9,<3' pip-audit --strict --require-hashes --disable-pip \
	        --progress-spinner off $(AUDIT_ARGS) -r $$lock || exit 1; done

.PHONY: clean
clean: ## remove caches and what the demo left; keeps .venv
	rm -rf demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find services tests integration_tests -name __pycache__ -type d -prune -exec rm -rf {} +
