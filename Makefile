# What people and CI type. `make help` lists it.

CARGO ?= cargo

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 20

.PHONY: demo
demo: ## migrate a live database between two throw-away clusters, with clients writing to it (under two minutes after the build)
	docker/setup.sh --for demo
	$(CARGO) build --release --locked
	target/release/changeover demo $(DEMO)

.PHONY: test
test: ## every test: units, properties, real servers of every version, a real broker
	docker/setup.sh --for test
	$(CARGO) build --locked
	$(CARGO) test --locked --no-fail-fast $(TEST)

.PHONY: lint
lint: ## formatting and clippy, warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

.PHONY: bench
bench: ## micro-benchmarks, and copy and drain beside PostgreSQL's own
	docker/setup.sh --for bench
	$(CARGO) bench --locked $(BENCH)

.PHONY: setup
setup: ## install what demo, tests and benchmarks need (Debian, Ubuntu)
	docker/setup.sh --for test
