# Everything runs in .venv; `make install` builds it from the pinned requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIN := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11
export PIP_DISABLE_PIP_VERSION_CHECK := 1

EPISODES ?= 100000
SEED ?= 1

.PHONY: install demo test test-deep soak lint format bench lock clean

install: $(STAMP)

$(STAMP): requirements/dev.txt pyproject.toml
	./scripts/system-packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: install
	HF_HUB_OFFLINE=1 $(BIN)/batchscribe demo

# Two processes: most tests wait for servers and processes beside them, but few cores do all the work.
test: install lint
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not deep"

test-deep: install
	$(BIN)/python -m pytest -n auto --dist worksteal -m deep

soak: install
	$(BIN)/python -m batchscribe.testing.simulation --episodes $(EPISODES) --seed $(SEED)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m bench

lock:
	$(PIN) --extra aws --extra demo --extra parakeet --group dev pyproject.toml -o requirements/dev.txt
	$(PIN) --extra parakeet pyproject.toml -o requirements/parakeet.txt
	$(PIN) --extra parakeet-gpu pyproject.toml -o requirements/parakeet-gpu.txt
	$(PIN) --extra gpu pyproject.toml -o requirements/gpu.txt

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
