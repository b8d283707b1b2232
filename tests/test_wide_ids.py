"""Ids of jobs beyond 2^31, in columns that were widened as the manual says."""

import re

from tests.harness import Worker, run_odoo
from tools.paths import ROOT

from odoo.addons.job_worker.delay import chain, group  # isort: skip

WIDE = ("queue_job", "queue_job_attempt", "queue_job_progress")


def widen(db):
    """Widen the columns with the statements of the manual, and go beyond what the narrow ones could hold."""
    (sql,) = re.findall(r"```sql\n(BEGIN;.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    db.query(sql)
    for table in WIDE:
        db.query(f"SELECT setval('{table}_id_seq', 3000000000)")


def read_as_the_web_client(env):
    """What the screens ask for."""
    jobs = env["queue.job"]
    for kind in ("list", "kanban", "form", "pivot", "graph", "calendar"):
        names = {name: {} for name in jobs.get_view(view_type=kind)["models"]["queue.job"]}
        found = jobs.web_search_read([], names, limit=80)
        assert len(found["records"]) == found["length"]
    jobs.web_read_group([], ["state"], ["__count"])
    for job in jobs.search([]):
        assert job.id > 2**31
        assert job.id in [node["id"] for node in job.graph_data()["nodes"]]
    env["queue.error.group"].web_search_read([], {"message": {}, "jobs": {}, "last_job_id": {}})
    env["queue.dashboard"].get_now()
    env["queue.dashboard"].get_history("hour")
    env["queue.channel"].get_channels()


def test_jobs_graphs_failures_and_progress_work_with_ids_that_32_bits_cannot_hold(fresh_db):
    widen(fresh_db)
    with fresh_db.env() as env:
        target = env["test.job.target"]
        graph = chain(
            group(*(target.delayable().job_ledger(f"part {number}") for number in range(3))),
            group(target.delayable().job_track(2, 0.1), target.delayable().job_ledger("last")),
        )
        graph.on_done(target.delayable(max_retries=1).job_fail().on_done(target.delayable().job_ledger("never")))
        graph.delay()
        target.with_delay(identity_key="key").job_ledger("keyed")
        assert target.with_delay(identity_key="key").job_ledger("keyed").id > 2**31
        for number in range(3):  # in a row
            target.with_delay().job_ledger(f"row {number}")
        read_as_the_web_client(env)
    with Worker(fresh_db):
        fresh_db.wait_until_drained()
    keys = ["keyed", "last", *(f"{kind} {number}" for kind in ("part", "row") for number in range(3))]
    assert fresh_db.ledger() == dict.fromkeys(keys, 1)
    assert fresh_db.states() == {"done": 9, "failed": 2}
    for table in WIDE:
        assert fresh_db.value(f"SELECT min(id) FROM {table}") > 2**31
    with fresh_db.env() as env:
        read_as_the_web_client(env)
        failed = env["queue.job"].search([("state", "=", "failed")])
        failed.button_requeue()
        assert set(failed.mapped("state")) == {"pending", "waiting"}
        failed.button_cancelled()
        failed.button_set_to_done()


def test_columns_that_were_widened_stay_so_when_the_addon_is_upgraded(fresh_db):
    def wide_columns():
        return fresh_db.query(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_name LIKE 'queue_%%' AND data_type = 'bigint' ORDER BY 1, 2"
        )

    widen(fresh_db)
    wide = wide_columns()
    assert ("queue_job", "parent_id") in wide
    status, output = run_odoo(fresh_db, "-u", "job_worker", "--stop-after-init", "--no-http")
    assert status == 0, output
    assert wide_columns() == wide
