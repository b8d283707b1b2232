# Everything behind these targets is Python, in tools/. The first call of any of them sets the environment up in .dev/.
# Environment: ODOO_HOME=/path/to/odoo-19 uses an Odoo you have; PGHOST, PGPORT, PGUSER and PGPASSWORD a PostgreSQL server
# you have; PG=15 (or PG_BIN=/path/to/bin) starts a private server from the machine's own PostgreSQL 15. With a server you
# have, PG says which version the tests start that need a server to themselves: make it the same. What tests need besides
# (chromium, pgbouncer) is fetched on Debian, and wanted on the PATH elsewhere.
PYTHON ?= python3
export PATH := $(or $(PATH),/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin)
ARGS ?=
ifdef PG
export PG_BIN := /usr/lib/postgresql/$(PG)/bin
endif

TARGETS := setup demo test lint serve worker bench soak shell ci stop clean
.PHONY: help $(TARGETS)
.DEFAULT_GOAL := help
RUN = @command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: apt-get install python3 python3-venv" >&2; exit 1; }; \
	$(PYTHON) -m tools $@ $(ARGS)

help:
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@sed -n 's/^# //p' $(MAKEFILE_LIST)

setup:  ## fetch Odoo, build the venv, start PostgreSQL (every other target does this by itself)
	$(RUN)
demo:   ## real work on a fresh database with two workers; finite
	$(RUN)
test:   ## all tests; ARGS=/job_worker:TestFoo (Odoo test tags) or ARGS="tests/test_x.py -k name" (pytest) narrows
	$(RUN)
lint:   ## ruff, pylint-odoo and the house rules
	$(RUN)
serve:  ## web client and a worker on the demo database
	$(RUN)
worker: ## a worker on the demo database; ARGS are those of odoo-bin job_worker
	$(RUN)
bench:  ## benchmarks
	$(RUN)
soak:   ## the long-running test under faults
	$(RUN)
shell:  ## Odoo shell on the demo database
	$(RUN)
ci:     ## what CI runs: lint, then test
	@bash .ci/run
stop:   ## stop the private PostgreSQL server
	$(RUN)
clean:  ## stop the private server and remove .dev/ with all it holds
	$(RUN)
