# Everything runs in .venv, which is made when it is missing or older than what it was made from.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# Each command is a new process: without .pyc files it would compile thousands of modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test soak check
.SILENT:

help: ## what can be made
	sed -n 's/^\([a-z]*\): .*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: VARIANTS := +variant=standard,math_code,chinese
demo: $(READY) ## train the whole family at small scale, three stages of three variants, on this machine, and look at it
	$(BIN)/python -m tinyllama.sample +scale=demo
	$(BIN)/python -m tinyllama.prepare +scale=demo
	$(BIN)/python -m tinyllama.train -m +scale=demo $(VARIANTS) stage=basic,continual,cooldown
	$(BIN)/python -m tinyllama.evaluate +scale=demo $(VARIANTS) stage=basic,cooldown
	$(BIN)/python -m tinyllama.generate +scale=demo $(VARIANTS) stage=cooldown prompt="今天" generation.temperature=0.5 generation.max_tokens=24
	$(BIN)/python -m tinyllama.report +scale=demo

# Each group of tests stays on one worker, the longest groups first (tests/scheduling.py).
PYTEST := $(BIN)/python -m pytest -q -n auto --dist loadgroup --no-loadscope-reorder

test: $(READY) ## all tests but the longest, about fifteen minutes on two cores
	$(PYTEST) -m "not soak" $(TEST_ARGS)

soak: $(READY) ## the tests that are long by nature; before a release, and when CONTRIBUTING.md says so
	$(PYTEST) -m soak --timeout 3600 $(TEST_ARGS)

check: $(READY) ## what to run before each commit: format, lint, types, layers, quick tests
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo > $(READY).layers || { cat $(READY).layers; exit 1; }
	$(PYTEST) -m "not slow and not soak" --ignore=tests/end_to_end

# pip finds the build of torch that fits the machine; uv is many times faster with the rest, and keeps that build.
$(READY): setup.cfg pyproject.toml constraints.txt
	echo "Setting up .venv, once: about 3 GB, a minute or more"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_ROOT_USER_ACTION=ignore $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt torch uv
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[test,dev]'
	touch $@
