"""What the screens of the web client cost the server, seen from its log while Chromium opens them."""

import json
import os
import re
import time
from dataclasses import dataclass, field

from bench import history, report
from bench.measure import Series
from tools import databases, setup
from tools.console import say
from tools.paths import LOG
from tools.screenshots import browser, log_in, serving, wait

LOG_FILE = "bench-screens.log"
COMPANIES = ("Second company", "Third company")
USERS = ("anna", "bert", "cora", "dirk", "elsa")
QUERY_MS, SCREEN_MS = 200, 1000
QUIET_SECONDS = 0.7

_QUERY = re.compile(r"\[(?P<ms>[\d.]+) ms\] query: ")
_REQUEST = re.compile(r'"(?:GET|POST) (?P<path>\S+) HTTP/[\d.]+" (?P<code>\d+) - \d+ (?P<sql>[\d.]+) (?P<rest>[\d.]+)')

_JOBS, _ERRORS = "job_worker.queue_job_action", "job_worker.queue_error_group_action"
SCREENS = {
    "dashboard": ("job_worker.queue_dashboard_action", None, {}),
    "channels": ("job_worker.queue_channel_action", None, {}),
    "errors": (_ERRORS, None, {}),
    "workers": ("job_worker.queue_worker_action", None, {}),
    **{f"jobs, {view}": (_JOBS, view, {}) for view in ("list", "kanban", "pivot", "graph", "calendar")},
}
# What is typed into the search of Jobs, by field.
TYPED = {
    "name": "INV/1234",
    "exc_info": "record 1234 was",
    "record_ref": "sale.order,1234",
    "model_name": "stock",
    "method_name": "label",
    "channel": "peppol",
    "user_id": "anna",
    "company_id": "Second",
    "identity_key": "c4ca4238a0b923820dcc509a6f75849b",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "graph_uuid": "7a6f4bd2-3c0e-4f0e-9d0c-5a5a11f0c001",
    "worker_id": "host-1",
}


# What a user sees, whose rules leave few of the jobs that are looked at.
USER_SCREENS = {
    f"user: {name}": SCREENS[name] for name in ("dashboard", "errors", "jobs, list", "jobs, kanban", "jobs, graph")
}


@dataclass
class Cost:
    """What the server did for a screen: its slowest request and query in ms, and requests that failed."""

    requests: int = 0
    request_ms: float = 0
    query_ms: float = 0
    failed: list[str] = field(default_factory=list)

    def read(self, line: str) -> None:
        if match := _QUERY.search(line):
            self.query_ms = max(self.query_ms, float(match["ms"]))
        elif match := _REQUEST.search(line):
            self.requests += 1
            self.request_ms = max(self.request_ms, 1000 * (float(match["sql"]) + float(match["rest"])))
            if int(match["code"]) >= 400:
                self.failed.append(f"{match['path']}: {match['code']}")


def screens(options) -> dict:
    """Every screen and every way to search and group jobs, opened in Chromium with a million jobs in the table."""
    setup.fetch_chromium()
    database = databases.clone()
    try:
        _fill(database, options.rows)
        log_options = ("--log-handler=werkzeug:INFO", "--log-handler=odoo.sql_db:DEBUG")
        with serving(database, *log_options, log=LOG_FILE) as url, browser() as page:
            costs = {}
            for login, opened in (("admin", {**SCREENS, **_searches(database)}), (USERS[0], USER_SCREENS)):
                log_in(page, url, database, login)
                page.call("Page.navigate", url=f"{url}/odoo/background-errors")
                wait(lambda: page.holds("document.querySelector('.o_web_client .o_view_controller')"), "the web client")
                for name in opened:
                    costs[name] = [_cost(page, *opened[name]) for _round in range(options.rounds)]
    finally:
        databases.drop(database)
    return _report(options.rows, costs)


def _fill(database: str, rows: int) -> None:
    with databases.environment(database) as env:
        companies = env["res.company"].create([{"name": name} for name in COMPANIES]) | env["res.company"].search([])
        env.user.company_ids = companies
        access = {"group_ids": env.ref("job_worker.group_queue_job_user").ids, "company_ids": companies.ids}
        users = env["res.users"].create([{"login": name, "name": name, "password": name, **access} for name in USERS])
        users, companies = (users | env.user).ids, companies.ids
    say(f"{rows:,} jobs")
    with databases.connect(database) as cursor:
        history.fill(cursor, rows, users, companies)


def _searches(database: str) -> dict[str, tuple]:
    """A list of jobs for each field, filter and grouping of the search view."""
    with databases.environment(database) as env:
        arch = env.ref("job_worker.queue_job_view_search")._get_combined_arch()
        user = env["res.users"].search([("login", "=", TYPED["user_id"])]).id
        company = env["res.company"].search([("name", "like", TYPED["company_id"])]).id
    found = {}
    for node in arch.iter("field", "filter"):
        name = node.get("name")
        value = {"user_id": user, "company_id": company}.get(name, TYPED[name]) if node.tag == "field" else 1
        found[f"jobs, search {name}"] = (_JOBS, "list", {f"search_default_{name}": value})
    return found


def _cost(page, action: str, view: str | None, context: dict) -> Cost:
    """Open an action as a menu does, and read in the log what that took, until there is nothing more."""
    cost = Cost()
    with (LOG / LOG_FILE).open() as log:
        log.seek(0, os.SEEK_END)
        options = {"clearBreadcrumbs": True, "additionalContext": context, **({"viewType": view} if view else {})}
        opening = f"odoo.__WOWL_DEBUG__.root.env.services.action.doAction({action!r}, {json.dumps(options)})"
        page.call("Runtime.evaluate", expression=opening, awaitPromise=True)
        quiet_since = time.monotonic()
        while not cost.requests or time.monotonic() < quiet_since + QUIET_SECONDS:
            for line in log:
                cost.read(line)
                quiet_since = time.monotonic()
            time.sleep(0.05)
    return cost


def _report(rows: int, costs: dict[str, list[Cost]]) -> dict:
    requests = {name: Series([cost.request_ms for cost in rounds]) for name, rounds in costs.items()}
    queries = {name: Series([cost.query_ms for cost in rounds]) for name, rounds in costs.items()}
    failed = [failure for rounds in costs.values() for cost in rounds for failure in cost.failed]
    slowest_request = max(series.median for series in requests.values())
    slowest_query = max(series.median for series in queries.values())
    return {
        "rows": rows,
        "requests": report.table(f"Slowest request of each screen, {rows:,} jobs", requests, "ms at the server"),
        "queries": report.table(f"Slowest query of each screen, {rows:,} jobs", queries, "ms"),
        "failed": failed,
        "goals": report.goals(
            [
                ("slowest request", f"< {SCREEN_MS} ms", slowest_request, slowest_request < SCREEN_MS),
                ("slowest query", f"<= {QUERY_MS} ms", slowest_query, slowest_query <= QUERY_MS),
                ("failed requests", "none", len(failed), not failed),
            ]
        ),
    }
