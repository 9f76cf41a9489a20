# Everything runs in .venv; `make install` builds it from the pinned requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIN := $(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes --no-emit-index-url --no-header --python-version 3.11
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Each of the test processes would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

EPISODES ?= 100000
SEED ?= 1
SKIP ?= 0
WORKERS ?= $(shell echo $$(($$(nproc) + 2)))

.PHONY: install dev demo test test-deep soak lint format bench docs lambda lock clean

install: $(VENV)/.installed
dev: $(VENV)/.dev

# What `make demo` and a user need.
$(VENV)/.installed: requirements/user.txt pyproject.toml
	./scripts/system-packages user
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/user.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# What the tests, lint and types need on top. A module is compiled when it is first imported: most never are.
$(VENV)/.dev: requirements/dev.txt $(VENV)/.installed
	./scripts/system-packages dev
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r requirements/dev.txt
	touch $@

# Test processes that start together would each rewrite the assertions of all tests.
$(VENV)/.compiled: $(VENV)/.dev
	$(BIN)/python -m pytest --collect-only -qq >/dev/null
	touch $@

# What the documentation is built with.
$(VENV)/.docs: requirements/docs.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/docs.txt
	touch $@

demo: install
	HF_HUB_OFFLINE=1 $(BIN)/batchscribe demo

# More processes than cores: half of the time a test waits for servers and processes beside it.
test: lint $(VENV)/.compiled
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not deep"

test-deep: $(VENV)/.compiled
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m deep

soak: dev
	$(BIN)/python -m simulation --episodes $(EPISODES) --seed $(SEED) --skip $(SKIP)

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: dev
	$(BIN)/python -m bench

# Into build/docs; the reference pages are written from the code first.
docs: $(VENV)/.docs
	$(BIN)/python -m docs.generate
	$(BIN)/sphinx-build --quiet --fail-on-warning --doctree-dir build/doctrees docs build/docs

# The code of the function in deploy/cloudformation/serverless.yaml: build/lambda.zip (docs/serverless.md).
lambda: install
	rm -rf build/lambda
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes --only-binary=:all: --implementation cp --python-version 3.12 \
		--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --target build/lambda -r requirements/scheduler.txt
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --no-build-isolation --target build/lambda .
	cd build/lambda && $(abspath $(BIN))/python -m zipfile -c ../lambda.zip *

lock: dev
	$(PIN) --extra aws --extra dashboard --extra demo --extra parakeet --extra plot --extra ray --extra speakers --group dev pyproject.toml -o requirements/dev.txt
	$(PIN) --extra aws --extra dashboard --extra demo --group build --constraint requirements/dev.txt pyproject.toml -o requirements/user.txt
	$(PIN) --extra aws --constraint requirements/dev.txt pyproject.toml -o requirements/scheduler.txt
	$(PIN) --extra parakeet --extra speakers pyproject.toml -o requirements/parakeet.txt
	$(PIN) --extra parakeet-gpu --extra speakers pyproject.toml -o requirements/parakeet-gpu.txt
	$(PIN) --extra gpu --extra speakers pyproject.toml -o requirements/gpu.txt
	$(PIN) --extra gpu --extra speakers --extra ray --constraint requirements/dev.txt pyproject.toml -o requirements/ray.txt
	$(PIN) --group docs --constraint requirements/dev.txt -o requirements/docs.txt

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
