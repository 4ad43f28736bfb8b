# Everything a person does with this repository. `make help` lists it.
CARGO ?= cargo
PREFIX ?= /usr/local
SIM_SECONDS ?= 30
# The tests of the lab mostly wait: several can run on each core.
LAB_THREADS ?= 8
SOAK_SECONDS ?= 3600
SOAK_RUNS ?= 1000000
FUZZ_RUNS ?= 1000000
# Without incremental compilation a build from nothing is faster.
export CARGO_INCREMENTAL ?= 0
# Every test command selects the whole workspace, also where it runs a part: with another selection cargo builds dependencies with other
# features, and all crates above them once more.
TESTED := --workspace --locked --features weave-cli/fault-injection
test_programs = $(addprefix --test ,$(sort $(foreach folder,$(1),$(notdir $(basename $(wildcard $(folder)/*/tests/*.rs)) \
  $(patsubst %/main.rs,%,$(wildcard $(folder)/*/tests/*/main.rs))))))
UNIT_TESTS := $(call test_programs,proto linux app)
SIM_TESTS := --test simulation
STATIC_TARGET ?= $(shell rustc -vV | sed -n 's/^host: //p')
STATIC_BINARY := target/$(STATIC_TARGET)/release/weave
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
# What make release makes.
DIST := target/dist

# Nothing may depend on x86.
OTHER_TARGET := aarch64-unknown-linux-gnu
OTHER_CC := aarch64-linux-gnu-gcc

# The object is committed: building the binary needs only cargo. Another version of clang makes another object.
BPF := linux/fastdp/bpf/fastdp.bpf
BPF_CLANG := clang-19 -O2 -Wall -Wextra -Werror -target bpfel -mcpu=v3 -c $(BPF).c

.PHONY: bpf test-build lab-build engines help demo demo-down test lint unit sim lab-test docs claims mutants soak scale fuzz bench bench-scale bench-peers build install static packages \
  image deb sbom release

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

packages:
	@tests/tools/packages

build: packages ## the binary, target/release/weave
	$(CARGO) build --release -p weave-cli

demo: packages ## three hosts made of namespaces, one container network; leaves it up to play with
	$(CARGO) build --release -p weave-cli -p weave-lab
	target/release/lab demo

demo-down: ## removes everything that demo made
	target/release/lab demo-down

test: packages lint test-build ## all that CI runs: format, clippy, unit, vectors, simulation, lab, docs
	+$(MAKE) --no-print-directory -j 2 lab-build unit
	+$(MAKE) --no-print-directory -j 2 sim lab-test
	+$(MAKE) --no-print-directory docs

lint: ## format, clippy with warnings denied, layout, references to the specification, licences and advisories, eBPF object
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) run --quiet -p weave-xtask -- layout
	$(CARGO) run --quiet -p weave-xtask -- references
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	 else echo "NOTICE: cargo-deny is not installed; licences and advisories not checked"; fi
	@if command -v clang-19 >/dev/null 2>&1; then \
	 $(BPF_CLANG) -o - | cmp - $(BPF).o || { echo "$(BPF).o does not match its source: run make bpf" >&2; exit 1; }; \
	 else echo "NOTICE: clang-19 is not installed; whether $(BPF).o matches its source is not checked"; fi
	@if [ -d "$$(rustc --print sysroot)/lib/rustlib/$(OTHER_TARGET)" ] && command -v $(OTHER_CC) >/dev/null 2>&1; then \
	 $(CARGO) check --workspace --locked --target $(OTHER_TARGET); \
	 else echo "NOTICE: $(OTHER_TARGET) or $(OTHER_CC) is not installed; whether everything compiles for it is not checked"; fi

bpf: ## compiles the eBPF programs (needs clang-19)
	$(BPF_CLANG) -o $(BPF).o

unit: packages ## unit, property, vector and kernel tests, fuzz corpora
	$(CARGO) test $(TESTED) --lib --bins $(UNIT_TESTS)

# Gives way to the lab, which mostly waits and runs beside it in `make test`.
sim: ## seeded simulation, SIM_SECONDS per suite
	SIM_SECONDS=$(SIM_SECONDS) nice -n 19 $(CARGO) test $(TESTED) $(SIM_TESTS) -- --nocapture

lab-test: packages lab-build ## real binaries on hosts made of namespaces (needs root)
	WEAVE_BIN=$(CURDIR)/target/debug/weave $(CARGO) test $(TESTED) --test hosts -- --nocapture --test-threads $(LAB_THREADS)

engines: ## a Debian tree with newer engines (SUITE: trixie, sid, ...), for lab tests with them (needs root)
	tests/tools/engines $(SUITE)

docs: ## API documentation; broken links are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --document-private-items

claims: packages lab-build static ## runs the tests that show rows of docs/claims.md and prints every row's state
	WEAVE_BIN=$(CURDIR)/target/debug/weave WEAVE_STATIC_BIN=$(CURDIR)/$(STATIC_BINARY) $(CARGO) run --quiet -p weave-xtask -- claims $(TESTED) --test hosts $(SIM_TESTS)

mutants: ## plants bugs (tests/mutants), one at a time, and requires that tests find each
	$(CARGO) run --quiet -p weave-xtask -- mutants

soak: packages lab-build ## long simulation: SOAK_RUNS runs of address allocation, then SOAK_SECONDS per suite; lab tests that take minutes
	LAB_LONG=1 WEAVE_LAB_ALL_FAULTS=1 WEAVE_BIN=$(CURDIR)/target/debug/weave \
	  $(CARGO) test $(TESTED) --test hosts -- --nocapture --test-threads $(LAB_THREADS) cluster_growth:: quorum_size:: dynamic_peers:: fault_injection:: docker_proxy::many_starts docker_restarts::containers_that_end docker_plugin:: podman:: engines:: cni_engines:: flapping:: busy_machine::
	SIM_RUNS=$(SOAK_RUNS) $(CARGO) test --release -p weave-sim --locked --test simulation -- --nocapture addresses_over_allocators
	SIM_RUNS=$(SOAK_RUNS) $(CARGO) test --release -p weave-sim --locked --test simulation -- --nocapture addresses_over_nodes
	SIM_SECONDS=$(SOAK_SECONDS) $(CARGO) test --release -p weave-sim --locked -- --nocapture

scale: ## meshes of 10, 100 and 1,000 simulated peers, 10,000 names at 100: time, messages and memory per peer
	$(CARGO) run --release -p weave-sim --bin scale
	$(CARGO) run --release -p weave-sim --bin names_scale

fuzz: ## every fuzz target FUZZ_RUNS times (needs cargo-fuzz)
	tests/tools/fuzz $(FUZZ_RUNS)

bench: ## ratios against kernel VXLAN and other DNS servers, launch time, memory, size (needs root)
	@tests/tools/packages bench
	$(CARGO) build --release -p weave-cli -p weave-lab
	target/release/lab bench

bench-scale: packages ## 50, 100 and 150 real daemons on this machine, up to half an hour (needs root)
	$(CARGO) build --release -p weave-cli -p weave-lab
	target/release/lab bench --only scale

bench-peers: packages ## encryption beside wireguard-go, nebula and gotatun, old and new, as far as they can be had (needs root)
	$(CARGO) build --release -p weave-cli -p weave-lab
	vpns=$$(tests/tools/vpns) && target/release/lab bench --only stream --only streams --only rr $$(printf -- '--vpn %s ' $$vpns)

install: ## the static binary into PREFIX/bin, manual and completions into PREFIX/share
	@mkdir -p target/share/man
	@if $(MAKE) --no-print-directory static; then cp $(STATIC_BINARY) target/share/weave-binary; else \
	  echo "NOTICE: no static binary can be built here (does the C library come with libc.a?); installing a dynamic one," \
	    "which Docker cannot run as a container" >&2; \
	  $(MAKE) --no-print-directory build && cp target/release/weave target/share/weave-binary; fi
	install -D -m 0755 target/share/weave-binary $(DESTDIR)$(PREFIX)/bin/weave
	target/share/weave-binary man --directory target/share/man
	for f in 'bash weave' 'zsh _weave' 'fish weave.fish'; do \
	  target/share/weave-binary completions $${f% *} > target/share/$${f##* } || exit 1; done
	install -d $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 0644 target/share/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	install -D -m 0644 target/share/weave $(DESTDIR)$(PREFIX)/share/bash-completion/completions/weave
	install -D -m 0644 target/share/_weave $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_weave
	install -D -m 0644 target/share/weave.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/weave.fish

# The folders of sources do not appear in the binary, which is the same wherever it is built. Nothing unwinds the stack of a program without
# symbols that aborts when it panics.
static: packages ## a static binary, target/<target>/release/weave
	options=$$(contrib/packages/remap-paths $(STATIC_TARGET)) && \
	RUSTFLAGS="-C target-feature=+crt-static -C force-unwind-tables=no -C link-arg=-Wl,--no-eh-frame-hdr \
	  -C link-arg=-Wl,-T,contrib/packages/no-unwind-tables.ld $$options" $(CARGO) build --release --locked -p weave-cli --target $(STATIC_TARGET)
	@file=$(STATIC_BINARY); \
	 if ldd $$file 2>/dev/null | grep -q '=>'; then echo "$$file is not static" >&2; exit 1; fi; \
	 echo "$$file: $$(stat -c %s $$file) bytes, static"

image: static ## an OCI image of the static binary, target/dist/weave-<version>-<target>.image.tar, for 'docker load' and 'podman load'
	@mkdir -p $(DIST)
	contrib/packages/image $(STATIC_BINARY) $(VERSION) $(DIST)/weave-$(VERSION)-$(STATIC_TARGET).image.tar

deb: static ## a Debian package of the static binary, target/dist/weave_<version>_<architecture>.deb
	@mkdir -p $(DIST)
	contrib/packages/deb $(STATIC_BINARY) $(VERSION) $(DIST)

sbom: ## what the binary is made of, target/dist/weave-<version>.cdx.json (needs cargo-cyclonedx)
	@mkdir -p $(DIST)
	contrib/packages/sbom $(STATIC_TARGET) $(DIST)/weave-$(VERSION).cdx.json

release: ## binary, image, package, SBOM and their checksums, target/dist
	rm -rf $(DIST)
	$(MAKE) --no-print-directory image deb sbom
	install -m 0755 $(STATIC_BINARY) $(DIST)/weave-$(VERSION)-$(STATIC_TARGET)
	cd $(DIST) && sha256sum -- * > SHA256SUMS
	@cat $(DIST)/SHA256SUMS

# All at once keeps all processors busy.
test-build:
	$(CARGO) test --no-run $(TESTED) --lib --bins $(UNIT_TESTS) $(SIM_TESTS) --test hosts

# Not optimised, so that it builds quickly: only containers run the static program.
lab-build:
	$(CARGO) build $(TESTED) --bins --test hosts
	@if command -v dockerd >/dev/null 2>&1; then \
	 RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=false \
	 $(CARGO) build --locked -p weave-cli --target $(STATIC_TARGET); \
	 else echo "NOTICE: Docker is not installed; its lab tests are skipped"; fi
