# `make` alone lists what there is to make. Tests have a profile of their own, with assertions and overflow checks.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Guest images, package cache and tools: kept between runs, removed by `make clean`.
export TWINVM_HOME ?= $(CURDIR)/.twinvm
# pgbench and etcd may have been unpacked there; the file system's tools are not on every user's path.
export PATH := $(TWINVM_HOME)/tools:$(PATH):/usr/sbin:/sbin

TARGET := $(or $(CARGO_TARGET_DIR),target)
TWINVM := $(TARGET)/release/twinvm
CARGO_FLAGS := --release --locked --workspace
TEST_FLAGS := --profile checked --locked
# How much `make soak` does: cases of each family of instructions, requests to a recorded guest, damaged kernels, simulated lives of
# a VM under faults and of VMs that are restarted, primaries killed under one client, takeovers over which the guest's clock is read, and seconds of guest time under load that a second VM repeats.
DIFFERENTIAL_CASES ?= 5000000
DETERMINISM_REQUESTS ?= 20000
MUTATIONS ?= 200000
SCHEDULES ?= 20000000
RESTARTS ?= 1000000
PRIMARIES_KILLED ?= 500
TAKEOVERS ?= 100
SOAK_GUEST_S ?= 600
BENCH_RUNS ?= 3
# A part of the names of the tests that `make test-kvm` and `make test-machines` run.
TEST ?=
# Where the demo plays (hosts of this machine, or `machines`), how it protects its VM (mirror, lockstep or none), and how often it kills the primary's host.
SCENE ?= hosts
MODE ?= mirror
KILLS ?= 3

.PHONY: help setup setup-build setup-image setup-kvm setup-peer setup-package setup-monitoring build deb test test-kvm test-machines test-package test-monitoring soak demo bench bench-kvm bench-machines bench-peer lint docs clean

help: ## List the targets
	@sed -En 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 15

setup: ## Install the Debian packages that building and testing need (with sudo if not root)
	@scripts/setup build image test

setup-build:
	@scripts/setup build

setup-image:
	@scripts/setup build image

setup-kvm:
	@scripts/setup build image test kvm

setup-peer:
	@scripts/setup peer

setup-package:
	@scripts/setup package

setup-monitoring:
	@scripts/setup monitoring

build: setup-build ## Compile twinvm
	cargo build $(CARGO_FLAGS)

deb: build setup-package ## Make the Debian package, in target/package
	@scripts/package $(TWINVM) $(TARGET)/package

test: setup ## Run all tests, those with guests included
	@said=$$(mktemp); trap 'rm -f '$$said EXIT; status=0; \
	cargo test $(TEST_FLAGS) --workspace --no-fail-fast 2> >(tee $$said >&2) || status=$$?; \
	skipped=$$(grep -c '^SKIPPED' $$said || true); \
	if [ $$skipped != 0 ]; then echo "$$skipped tests, or parts of them, cannot run here: see the lines SKIPPED"; fi; exit $$status

test-kvm: setup-kvm ## Run the tests of the KVM engine, in a machine that has virtualization hardware (TEST=NAME for some of them)
	cargo test $(TEST_FLAGS) --workspace --test kvm_machine -- --include-ignored $(TEST)

test-machines: setup ## Run the tests with three machines in QEMU, set up by docs/operators.md, that lose power (long; TEST=primary for the short form)
	cargo test $(TEST_FLAGS) --workspace --test machines -- --include-ignored --nocapture --test-threads 1 $(TEST)

test-package: deb ## Install, upgrade and remove the Debian package in fresh systems of Debian 12 and 13 (as root)
	@scripts/test-package $(TARGET)/package/twinvm_*.deb

test-monitoring: setup-monitoring ## Raise each alarm of packaging/monitoring by the figures that should, and none by those that should not
	promtool check rules packaging/monitoring/twinvm.rules.yml
	promtool test rules packaging/monitoring/twinvm.rules.test.yml

soak: setup setup-peer ## Run the randomized tests at their full counts, and those that take long (hours)
	TWINVM_DIFFERENTIAL_CASES=$(DIFFERENTIAL_CASES) cargo test $(TEST_FLAGS) -p cpu --test differential -- --nocapture
	TWINVM_DETERMINISM_REQUESTS=$(DETERMINISM_REQUESTS) cargo test $(TEST_FLAGS) -p twinvm --test guests -- --nocapture determinism::
	TWINVM_SOAK_GUEST_S=$(SOAK_GUEST_S) TWINVM_SOAK_VCPUS=1,2,4 cargo test $(TEST_FLAGS) -p twinvm --test guests -- --nocapture soak::
	TWINVM_MUTATIONS=$(MUTATIONS) cargo test $(TEST_FLAGS) -p machine --test boot_linux
	cargo test $(TEST_FLAGS) -p storage --test image_build -- --ignored
	cargo test $(TEST_FLAGS) -p twinvm --test guests -- --ignored --nocapture debian
	TWINVM_SIM_SCHEDULES=$(SCHEDULES) cargo test $(TEST_FLAGS) -p sim --test schedules every_schedule -- --nocapture
	TWINVM_SIM_RESTARTS=$(RESTARTS) cargo test $(TEST_FLAGS) -p sim --test restarts no_vm_runs_twice -- --nocapture
	TWINVM_KILLS=$(PRIMARIES_KILLED) cargo test $(TEST_FLAGS) -p twinvm --test mirror a_killed_primary -- --nocapture
	TWINVM_KILLS=$(PRIMARIES_KILLED) cargo test $(TEST_FLAGS) -p twinvm --test lockstep a_killed_primary -- --nocapture
	cargo test $(TEST_FLAGS) -p twinvm --test mirror row_31 -- --ignored --nocapture
	TWINVM_TAKEOVERS=$(TAKEOVERS) cargo test $(TEST_FLAGS) -p twinvm --test mirror row_30 -- --nocapture
	TWINVM_TAKEOVERS=$(TAKEOVERS) cargo test $(TEST_FLAGS) -p twinvm --test lockstep row_30 -- --nocapture

demo: $(if $(filter machines,$(SCENE)),setup,setup-image build) ## Kill the host under a protected Redis, again and again (KILLS=20; MODE=lockstep, MODE=none for a plain VM; SCENE=machines for three machines that lose power)
ifeq ($(SCENE),machines)
	@cargo test $(TEST_FLAGS) --workspace --test machines -- --ignored --nocapture --test-threads 1 loss_of_any_machine
else
	@runtime=$$(mktemp -d); trap 'rm -rf "$$runtime"' EXIT; XDG_RUNTIME_DIR=$$runtime $(TWINVM) demo --mode $(MODE) --kills $(KILLS)
endif

bench: setup-image setup-peer build ## Measure twinvm beside its peers, and its hosts by themselves; figures go to target/bench/*.json
	@mkdir -p $(TARGET)/bench
	$(TWINVM) bench cpu --runs $(BENCH_RUNS) --json $(TARGET)/bench/cpu.json
	$(TWINVM) bench ft --runs $(BENCH_RUNS) --json $(TARGET)/bench/ft.json
	$(TWINVM) bench ft --mode lockstep --runs $(BENCH_RUNS) --json $(TARGET)/bench/ft-lockstep.json
	$(TWINVM) bench cluster --json $(TARGET)/bench/cluster.json
	$(TWINVM) bench ha --json $(TARGET)/bench/ha.json

bench-machines: setup build ## Measure how long a client waits when one of three machines with etcd is lost (as root); figures go to target/bench/
	@mkdir -p $(TARGET)/bench
	$(TWINVM) bench machines --json $(TARGET)/bench/machines.json

bench-kvm: setup-kvm ## Measure the KVM engine beside QEMU's KVM, in a machine that has virtualization hardware; figures go to target/bench/
	TWINVM_BENCH_KVM=$(abspath $(TARGET))/bench TWINVM_BENCH_RUNS=$(BENCH_RUNS) cargo test $(CARGO_FLAGS) --test kvm_machine

bench-peer: setup-image setup-peer build ## Measure QEMU alone, on the same work
	@mkdir -p $(TARGET)/bench
	$(TWINVM) bench cpu --peer only --runs $(BENCH_RUNS) --json $(TARGET)/bench/cpu-peer.json

lint: setup-build ## Check formatting and clippy
	cargo fmt --all --check
	cargo clippy $(TEST_FLAGS) --workspace --all-targets -- -D warnings

docs: setup-build ## Render the documentation of all crates, private items included
	cargo doc $(TEST_FLAGS) --workspace --no-deps --document-private-items --config 'build.rustdocflags=["-D", "warnings", "-A", "rustdoc::private-intra-doc-links"]'

clean: ## Remove everything that was built, guest images included
	cargo clean
	rm -rf .twinvm
