# What people and CI type. `make help` lists it.

CARGO ?= cargo

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 20

.PHONY: demo
demo: ## migrate a live database between two throw-away clusters, with clients writing to it (under two minutes after the build)
	docker/setup.sh --for demo
	$(CARGO) build --release --locked
	$(or $(CARGO_TARGET_DIR),target)/release/changeover demo $(DEMO)

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

.PHONY: bench-long
bench-long: ## the copy of 1, 10 and 100 million narrow rows: the ratio has to stay (30 GB of disk, half an hour)
	docker/setup.sh --for bench
	for scale in 10 100 1000; do BENCH_SET=narrow BENCH_SCALE=$$scale $(CARGO) bench --locked --bench copy || exit 1; done

.PHONY: campaign
campaign: ## the crash tests of `make test` RUNS times (10), each with another seed: 500 blows while copying, 300 kills
	docker/setup.sh --for test
	for run in $$(seq $(or $(RUNS),10)); do $(CARGO) test --locked --test live -- crash:: --nocapture || exit 1; done

.PHONY: campaign-apply
campaign-apply: ## SEEDS (1000) random workloads, applied whole and in parts, compared with the source after each barrier
	docker/setup.sh --for test
	CHANGEOVER_SEEDS=$(or $(SEEDS),1000) $(CARGO) test --locked --test live -- a_random_workload_ends_equal --nocapture

.PHONY: campaign-crash
campaign-crash: ## SEEDS (500) migrations under load, each struck four times at named points: daemon, servers, connections
	docker/setup.sh --for test
	CHANGEOVER_SEEDS=$(or $(SEEDS),500) $(CARGO) test --locked --test live -- blows_at_named_points --nocapture

.PHONY: campaign-outage
campaign-outage: ## MIB (5120) of changes while the broker, then the target is away, with a spool that takes them and no more
	docker/setup.sh --for test
	CHANGEOVER_BACKLOG_MIB=$(or $(MIB),5120) $(CARGO) test --locked --test live -- outage:: --nocapture --test-threads 1

.PHONY: campaign-huge
campaign-huge: ## one transaction of MIB (10240), streamed and as a backlog (60 GB of disk)
	docker/setup.sh --for test
	CHANGEOVER_TRANSACTION_MIB=$(or $(MIB),10240) $(CARGO) test --locked --test live -- huge:: --nocapture --test-threads 1

.PHONY: setup
setup: ## install what demo, tests and benchmarks need (Debian, Ubuntu)
	docker/setup.sh --for test
