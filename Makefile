# Everything a developer does here. Each target makes what it needs; `make` alone lists them.
.DEFAULT_GOAL := help

PY := .venv/bin/python
READY := .venv/.installed

$(READY): pyproject.toml tools/venv.sh
	@tools/venv.sh .venv dev

.venv: $(READY) ## make the environment with all tools (the other targets do it by themselves)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=/path/to/python3 chooses the interpreter of .venv (else python3, from 3.10 on)."
	@echo "  CI=true turns what would skip for want of a tool or a broker into a failure."

demo: $(READY) ## watch an order service survive kill -9, failures and poison (BROKER=url: on that broker)
	@$(PY) -m examples.demo $(if $(BROKER),--broker $(BROKER))

test: $(READY) ## all tests: the unit tier on every installed Python, then integration/
	@tools/unit.sh
	@tools/integration.sh

test-fast: $(READY) ## most of the unit tier, on the main interpreter: no network, half a minute
	$(PY) -m pytest -n 2 -m "not slow"

faults: $(READY) ## integration/ with the long forms of the fault tests
	@RELIABLE_MQ_LONG=1 tools/integration.sh

CHECKS := "ruff check ." "ruff format --check ." mypy lint-imports codespell

check: $(READY) ## lint, format, types, imports, spelling: runs all of them, changes nothing
	@failed=0; \
	for step in $(CHECKS); do \
		echo "== $$step"; \
		.venv/bin/$$step || failed=1; \
	done; \
	exit $$failed

BENCH := .venv-bench
$(BENCH)/.installed: pyproject.toml tools/venv.sh
	@tools/venv.sh $(BENCH) bench-peers

bench: $(BENCH)/.installed ## all benchmarks, or one (ONLY=B7), beside other clients in .venv-bench
	@$(BENCH)/bin/python -m benchmarks $(ONLY)

brokers-up: $(READY) ## start a local RabbitMQ and a Kafka, or one (ONLY=kafka), and print their URLs
	@$(if $(filter-out rabbitmq,$(ONLY)),,tools/rabbitmq.sh)
	@$(if $(filter-out kafka,$(ONLY)),,tools/kafka.sh)
	@$(PY) -m reliable_mq.testing.brokers up $(ONLY)

brokers-down: $(READY) ## stop them and remove their data
	@$(PY) -m reliable_mq.testing.brokers down $(ONLY)

clean: ## remove environments, caches and results, and stop local brokers
	@if [ -d .cache/brokers ] && [ -x $(PY) ]; then $(PY) -m reliable_mq.testing.brokers down; fi
	rm -rf .venv .venv-* .venv*.lock .cache .coverage .coverage.* htmlcov build dist .hypothesis
	rm -rf .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help demo test test-fast faults check bench brokers-up brokers-down clean .venv
