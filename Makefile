# Every target installs what it needs. Rust (rustup or a distribution's, see rust-version in Cargo.toml) is asked for.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# No step runs for ever: builds and tests have an end of their own.
BUILD := timeout --foreground 45m
TESTS := timeout --foreground 15m

# The end-to-end test's tools: the real llama.cpp server and the official OpenAI clients, pinned.
E2E := $(CURDIR)/target/e2e
export WEIR_E2E_DIR := $(E2E)
# Prometheus and promtool of Debian's package, whichever version the release has: unpacked, not installed.
PROMETHEUS := $(CURDIR)/target/prometheus
export WEIR_PROMETHEUS_DIR := $(PROMETHEUS)

# Cargo's own tools, pinned, and built without optimisation: that takes a tenth of the time, and they run for seconds.
TOOLS := $(CURDIR)/target/tools
CARGO_DENY := 0.20.2
CARGO_DEB := 3.8.0
ADVISORIES := https://github.com/RustSec/advisory-db

.PHONY: help run test soak fuzz lint deny deb package bench prometheus cargo c-tools cxx python systemd-analyze

help: ## This list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 8

run: cargo c-tools ## Weir on http://127.0.0.1:8080/v1 with a demo provider, a funded account and a key, in ./weir-data
	cargo run --locked -- serve --demo

test: lint systemd-analyze $(E2E)/installed $(PROMETHEUS)/installed $(TOOLS)/cargo-deb-$(CARGO_DEB) ## Lint, then every test: unit, integration, end to end with llama.cpp and the official clients, and libFuzzer for seconds
	$(BUILD) cargo test --locked --no-run
	rm -rf $(FUZZ)/fresh && $(MAKE) --no-print-directory fuzz SECONDS=3 SEED=1 CORPUS=$(FUZZ)/fresh
	$(TESTS) cargo test --locked

# `make soak KILLS=100 AWAY=20` is a shorter one.
soak: cargo c-tools python ## The crash tests at length, a stream of two minutes through an upgrade, upgrades and stops under load
	$(BUILD) cargo test --locked --no-run --test it
	WEIR_RELOADS=$(or $(RELOADS),2000) timeout --foreground 1h cargo test --locked --test it reload::storm -- --nocapture
	WEIR_KILLS=$(or $(KILLS),1000) WEIR_AWAY_SECONDS=$(or $(AWAY),60) timeout --foreground 3h cargo test --locked --test it crash:: -- --nocapture --test-threads=1
	WEIR_STREAM_SECONDS=120 WEIR_UPGRADE_REQUESTS=100 WEIR_UPGRADE_STREAMS=200 WEIR_UPGRADES=3 WEIR_STOP_STREAMS=500 WEIR_ACCOUNTS=10000 \
		timeout --foreground 15m cargo test --locked --test it -- upgrade:: stops:: --nocapture --test-threads=1

# `make fuzz TARGET=body SECONDS=600` is a longer one of one target. What fails is in target/fuzz/found, to be a seed once it is mended.
# Memory is safe here without a sanitizer: it is panics and broken promises that are looked for.
FUZZ := $(CURDIR)/target/fuzz
CORPUS ?= $(FUZZ)/corpus
TARGETS = $(or $(TARGET),$(basename $(notdir $(wildcard tests/fuzz/src/bin/*.rs))))
WEIR_FUZZ = --quiet --locked --config tests/fuzz/profile.toml --package weir-fuzz
fuzz: cargo cxx ## What must hold for any bytes, by libFuzzer: every seed, then a minute for each target
	export RUSTC_WRAPPER=$(CURDIR)/tests/fuzz/rustc
	$(BUILD) cargo build $(WEIR_FUZZ)
	for target in $(TARGETS); do
		echo "$$target:"
		mkdir -p $(CORPUS)/$$target $(FUZZ)/found/$$target
		cargo run $(WEIR_FUZZ) --bin $$target -- $(CORPUS)/$$target tests/fuzz/seeds/$$target -seed=$(or $(SEED),0) -dict=tests/fuzz/dictionary -max_len=4096 -timeout=10 \
			-max_total_time=$(or $(SECONDS),60) -artifact_prefix=$(FUZZ)/found/$$target/ -verbosity=0 -print_funcs=0 -print_final_stats=1
		if [ ! "$$(ls $(CORPUS)/$$target)" ]; then echo "no case is worth keeping: $$target was built without tests/fuzz/rustc" >&2; exit 1; fi
	done

lint: cargo cxx deny ## Formatting, clippy, documentation links and `make deny`, warnings refused
	@cargo fmt --version > /dev/null && cargo clippy --version > /dev/null || rustup component add rustfmt clippy
	cargo fmt --all --check
	$(BUILD) cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(BUILD) cargo doc --locked --no-deps --document-private-items

# Known vulnerabilities are asked for where their database can be fetched; where it cannot, that is said, and is a failure with ADVISORY=required.
deny: $(TOOLS)/cargo-deny-$(CARGO_DENY) ## Licences, banned crates, sources and known vulnerabilities of what Weir is built from
	deny() { $(TOOLS)/bin/cargo-deny --config .deny.toml --locked --log-level error check --hide-inclusion-graph "$$@"; }
	deny bans licenses sources
	if GIT_TERMINAL_PROMPT=0 timeout 30 git ls-remote --exit-code $(ADVISORIES) HEAD > /dev/null 2>&1; then
		deny advisories
	else
		echo "ADVISORIES WERE NOT CHECKED: $(ADVISORIES) cannot be reached from here" >&2
		if [ "$(ADVISORY)" = required ]; then exit 1; fi
	fi

# `make deb REVISION=2` is a second package of the same version.
REVISION ?= 1
deb: cargo c-tools $(TOOLS)/cargo-deb-$(CARGO_DEB) ## The Debian package, in target/debian, and its debug symbols in another
	$(BUILD) cargo build --locked --release
	$(MAKE) --no-print-directory package
	$(TOOLS)/bin/cargo-deb --locked --no-build --dbgsym --deb-revision $(REVISION)

# What the package has besides the binary: the manual, completions, and the configuration with a service's own paths; and that
# of a container (conf/Containerfile), which is reached from outside and keeps all that it makes in its volume.
WEIR = $(or $(CARGO_TARGET_DIR),target)/release/weir
PACKAGE = $(dir $(WEIR))package

package:
	rm -rf $(PACKAGE) && mkdir -p $(PACKAGE)/share
	$(WEIR) man $(PACKAGE)/man
	for shell in bash zsh fish; do $(WEIR) completions $$shell > $(PACKAGE)/weir.$$shell; done
	sed -e 's|^#url = "sqlite:weir-data/|url = "sqlite:/var/lib/weir/|' -e 's|^#pepper = "file:weir-data/|pepper = "file:/etc/weir/credentials/|' \
		-e 's|^#dir = "weir-data/|dir = "/var/lib/weir/|' -e 's|^api_key = "env:OPENAI_API_KEY"|api_key = "file:/etc/weir/credentials/openai"|' \
		conf/weir.toml > $(PACKAGE)/weir.toml
	if grep -nE 'weir-data|OPENAI_API_KEY' $(PACKAGE)/weir.toml; then echo "these are not the paths of a service" >&2; exit 1; fi
	sed -e 's|^#\(.*\)weir-data/|\1/var/lib/weir/|' -e 's|^#listen = \["127.0.0.1:8080"\]|listen = ["0.0.0.0:8080"]|' \
		-e 's|^#plain_http = "loopback"|plain_http = "anywhere"|' conf/weir.toml > $(PACKAGE)/container.toml
	cp -r conf/prices.toml systemd/weir.service.d $$(ls -d conf/grafana conf/prometheus 2> /dev/null) $(PACKAGE)/share/
	version=$$($(WEIR) --version | cut -d' ' -f2)
	printf 'weir (%s-%s) stable; urgency=medium\n\n  * Release %s.\n\n -- The Weir authors <maintainers@weir.invalid>  %s\n' \
		$$version $(REVISION) $$version "$$(date -R -d @$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)})" > $(PACKAGE)/changelog.Debian
	gzip -9n $(PACKAGE)/man/* $(PACKAGE)/changelog.Debian

# `make bench QUICK=1` gives a rough answer in a minute.
bench: cargo c-tools ## Hot functions, the books, the whole beside a bare Pingora proxy, and the memory of a stream
	$(BUILD) cargo bench --locked --no-run
	$(BUILD) cargo bench --locked --bench hot -- $(if $(QUICK),--quick)
	$(BUILD) cargo bench --locked --bench books -- $(if $(QUICK),--quick)
	$(BUILD) cargo bench --locked --bench whole -- $(if $(QUICK),--quick)
	$(BUILD) cargo bench --locked --bench memory -- $(if $(QUICK),--quick)

prometheus: $(PROMETHEUS)/installed ## Prometheus and promtool in target/, for the tests of metrics, rules and dashboards

cargo:
	@command -v cargo > /dev/null || { echo "Rust is needed: https://rustup.rs" >&2; exit 1; }

# The build of Pingora's compression libraries needs CMake and a C compiler; SQLite needs the compiler.
c-tools:
	@missing=()
	command -v cmake > /dev/null || missing+=(cmake)
	command -v cc > /dev/null || missing+=(gcc libc6-dev)
	$(call apt-install)

# libFuzzer comes as C++.
cxx: c-tools
	@missing=()
	command -v c++ > /dev/null || missing+=(g++)
	$(call apt-install)

# It reads and rates the unit; nothing is started by it.
systemd-analyze:
	@missing=()
	command -v systemd-analyze > /dev/null || missing+=(systemd)
	$(call apt-install)

python:
	@missing=()
	command -v python3 > /dev/null || missing+=(python3)
	python3 -c 'import ensurepip, venv, sqlite3' 2> /dev/null || missing+=(python3-venv)
	$(call apt-install)

.ONESHELL:

$(E2E)/installed: tests/e2e/requirements.txt tests/e2e/package.json | python
	rm -rf $(E2E) && mkdir -p $(E2E)
	python3 -m venv $(E2E)/venv
	timeout 15m $(E2E)/venv/bin/pip install --quiet --disable-pip-version-check -r tests/e2e/requirements.txt
	cp tests/e2e/package.json $(E2E)/
	cd $(E2E) && PATH="$(E2E)/venv/bin:$$PATH" timeout 10m npm install --no-audit --no-fund --loglevel error
	touch $@

$(TOOLS)/cargo-deny-$(CARGO_DENY): | cargo
	$(BUILD) cargo install --quiet --locked --debug --root $(TOOLS) cargo-deny@$(CARGO_DENY)
	touch $@

$(TOOLS)/cargo-deb-$(CARGO_DEB): | cargo
	$(BUILD) cargo install --quiet --locked --debug --root $(TOOLS) cargo-deb@$(CARGO_DEB)
	touch $@

$(PROMETHEUS)/installed:
	rm -rf $(PROMETHEUS) && mkdir -p $(PROMETHEUS)
	if ! apt-cache show prometheus > /dev/null 2>&1; then
		if [ "$$(id -u)" = 0 ]; then apt-get update -q; else sudo apt-get update -q; fi
	fi
	cd $(PROMETHEUS)
	timeout 10m apt-get download -q prometheus
	dpkg-deb -x prometheus_*.deb .
	rm prometheus_*.deb
	touch $@

# Installs the packages in the shell's array `missing`, as root or through sudo.
define apt-install
if (($${#missing[@]})); then
	sudo=; if [ "$$(id -u)" != 0 ]; then sudo=sudo; fi
	if ! command -v apt-get > /dev/null || { [ "$$sudo" ] && ! command -v sudo > /dev/null; }; then
		echo "Please install: $${missing[*]}" >&2; exit 1
	fi
	echo "Installing $${missing[*]}"
	$$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $${missing[*]}
fi
endef
