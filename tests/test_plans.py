"""What the hot path reads of the table, whatever the statistics say: they are of another moment."""

import re

import pytest

from tests.harness import Database  # first: it puts the addons on the path

from odoo.addons.job_worker import queries  # isort: skip
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
    parameters = {"worker": "nobody", "count": 66, "further": 0, "free": 2, **claims._known()}
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
