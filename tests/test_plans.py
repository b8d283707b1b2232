"""What the hot path and the vacuum read of the table, whatever the statistics say: they are of another moment."""

import re

import pytest

from tests.harness import Database  # first: it puts the addons on the path

from odoo.addons.job_worker import queries  # isort: skip
from odoo.addons.job_worker.delay import chain, group  # isort: skip
from odoo.addons.job_worker.worker import claiming  # isort: skip
from odoo.addons.job_worker.worker.claiming import Claiming  # isort: skip
from odoo.addons.job_worker.worker.connection import Connection  # isort: skip

SERVING = {"queue_job_claim_idx", "queue_job_running_idx", "queue_job_due_idx", "queue_job_pkey"}
SERVING |= {"queue_job__parent_id_index", "queue_job_dependency_rel_dependency_id_job_id_idx"}
SCAN = re.compile(
    r"(Seq|Bitmap Heap|Index(?: Only)?) Scan (?:using (\S+) )?on (queue_job(?:_dependency_rel)?)\b.*\n(.*)"
)
LOOKED_UP = re.compile(r"Index Cond: .*\bid = ")


def plans(db: Database, channels):
    """The plans of the statements that claim and finish, as the worker prepares them."""
    connection = Connection(db.name)
    finish = {"id": 1, "claim_seq": 1, "result": None, "duration": 1.0}
    claims = Claiming(session=True)
    claims._horizons = dict.fromkeys(channels, claiming._BEGINNING)
    parameters = {"worker": "nobody", "count": 66, "further": 0, "free": 2, "modules": None, **claims._known()}
    try:
        with connection.transaction() as cr:
            cr.execute("SET plan_cache_mode = force_generic_plan")  # as the function's statements have them
            for name, sql in claiming._STATEMENTS.items():
                prepare, execute, _plain = queries.prepared_statement(name, sql, claiming._TYPES)
                cr.execute(prepare)
                cr.execute(f"EXPLAIN {execute}", {**parameters, "discover": True})
                yield name, "\n".join(line for (line,) in cr.fetchall())
    finally:
        connection.close()
    with db.env() as env:  # with the settings that jobs have
        env.cr.execute(f"SET plan_cache_mode = force_generic_plan; {queries.PLAN_BY_INDEX}; {queries.PREPARE_FINISH}")
        env.cr.execute(f"EXPLAIN {queries.EXECUTE_FINISH}", finish)
        yield "finish", "\n".join(line for (line,) in env.cr.fetchall())


@pytest.mark.parametrize("analysed", ["empty", "done", "pending", "waiting"])
def test_the_hot_path_reads_by_its_own_indexes_alone(fresh_db, analysed):
    rows = {
        "done": "UPDATE queue_job SET state = 'done', completed_at = now(), is_due = false",
        "pending": "UPDATE queue_job SET is_due = true",
        "waiting": "UPDATE queue_job SET state = 'waiting', is_due = false",
    }
    if analysed in rows:
        fresh_db.enqueue("job_nothing", [()] * 3000, channel="one")
        fresh_db.query(rows[analysed])
    fresh_db.query("ANALYZE queue_job, queue_limit, queue_limit_starts, queue_job_dependency_rel")
    for name, plan in plans(fresh_db, ["one", "two"]):
        scans = SCAN.findall(plan)
        assert scans
        for kind, index, table, condition in scans:
            # as good as the primary key, where the id is known
            served = index in SERVING or (index == "queue_job_waiting_idx" and LOOKED_UP.search(condition))
            assert served, f"{name}, statistics of a queue that is {analysed}: {kind} {index} {table}\n{plan}"
            assert index != "queue_job_pkey" or LOOKED_UP.search(condition), f"{name} reads the whole table\n{plan}"


class ExplainingCursor:
    """Executes statements with ``EXPLAIN (ANALYZE)`` and keeps the plans."""

    def __init__(self, cr):
        self._cr = cr
        self.plans = []
        self.rowcount = 0

    def execute(self, sql, *args, **kwargs):
        if sql.startswith("SET LOCAL"):
            self._cr.execute(sql)
            return
        self._cr.execute(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", *args)
        self.plans.append("\n".join(line for (line,) in self._cr.fetchall()))

    def fetchall(self):
        return []


@pytest.mark.parametrize("analysed", ["empty", "full"])
def test_the_vacuum_reads_little_more_than_its_batch_beside_many_live_graphs(fresh_db, analysed):
    with fresh_db.env() as env:
        target = env["test.job.target"]
        for _graph in range(2):
            chain(
                target.delayable().job_nothing(), group(*(target.delayable().job_nothing() for _ in range(5000)))
            ).delay()
    old = "UPDATE queue_job SET state = 'done', is_due = false, completed_at = now() - interval '40 days'"
    fresh_db.query(f"{old} + id * interval '1 second' WHERE id % 2 = 0")
    fresh_db.query("UPDATE queue_job SET graph_uuid = id / 100 WHERE id > 100")
    if analysed == "full":
        fresh_db.query("ANALYZE queue_job, queue_job_dependency_rel")
    with fresh_db.env() as env:
        expired = queries.expired_jobs(env.cr, {"done": 30, "failed": 30, "cancelled": 30}, None, 100)
        assert len(expired) == 100
        cr = ExplainingCursor(env.cr)
        queries.expired_jobs(cr, {"done": 30, "failed": 30, "cancelled": 30}, None, 100)
        queries.delete_jobs(cr, [job_id for job_id, *_rest in expired])
        env.cr.rollback()
    for plan in cr.plans:
        blocks = sum(map(int, re.findall(r"(?:hit|read)=(\d+)", plan.splitlines()[1])))
        assert "Seq Scan on queue_job" not in plan
        assert blocks < 1500, plan


def test_a_claim_reads_the_modules_in_use_once(db):
    plan = dict(plans(db, ["one"]))["open"]
    assert re.findall(r"(\w+) Scan using (\w+) on ir_module_module", plan) == [
        ("Index", "ir_module_module__state_index")
    ]
    assert "Scan on ir_module_module" not in plan
