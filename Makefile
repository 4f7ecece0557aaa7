# The two commands: `make run` builds and boots the image of RECIPE, `make test` tests everything this machine can have.
RECIPE ?= recipes/debian-minimal
OUTPUT ?= out/$(notdir $(RECIPE))
PYTEST ?= .venv/bin/python -m pytest
# One more than there are processors: tests often wait.
PROCESSES ?= $(shell expr $$(nproc) + 1)
disk-image = .venv/bin/disk-image

.PHONY: help run test test-peers check unit setup bench docs

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

run: setup ## build RECIPE into OUTPUT, sign, push and publish it on this machine alone, boot it
	@.venv/bin/python scripts/run.py $(RECIPE) $(OUTPUT)

# What the tests compare with: fsverity(1), and a clock that can be set ahead; what the tutorials need.
test: export SETUP_PACKAGES = fsverity libfaketime curl openssl
# The registry that images are pushed to, and the server that the platform's database may be on.
run: export SETUP_UNPACK = docker-registry
test test-peers: export SETUP_UNPACK = docker-registry postgresql
test: setup ## every test this machine can run; the rest is reported as skipped, with the reason
	tests/peers/build test
	$(PYTEST) -n $(PROCESSES)

unit: setup ## the quick tests alone: no network, no sandbox
	$(PYTEST) -n $(PROCESSES) -m "not network and not sandbox and not boot and not kernel and not peers and not engine"

test-peers: export SETUP_PACKAGES = fsverity libfaketime gcc libc6-dev git
test-peers: setup ## build the peers that this machine can have, then run the tests against them
	tests/peers/build
	$(PYTEST) -m peers

check: setup ## linters and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

docs: setup ## the reference pages, from the code
	.venv/bin/python scripts/reference.py

bench: setup ## side by side with mkosi (MKOSI=path to a checkout), mkcomposefs and oras
	.venv/bin/python -m bench

setup:
	@scripts/setup
