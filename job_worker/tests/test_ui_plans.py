from unittest.mock import patch

from odoo.sql_db import Cursor
from odoo.tests import tagged

from .. import queries
from .case import JobCase

LIST = {"id": {}, "state": {}, "name": {}, "run_time": {}}


@tagged("post_install", "-at_install", "job_worker")
class TestPlans(JobCase):
    """What the screens ask for is served by indexes; how long it takes is for ``make bench ARGS=screens``."""

    def plans(self, call):
        """Plans of the statements on jobs that ``call`` executes, by a planner that reads and sorts only if it must."""
        statements = []
        execute = Cursor.execute

        def spy(cr, query, params=None, **options):
            execute(cr, query, params, **options)
            statement = cr.query.decode()
            if "queue_job" in statement and "SELECT" in statement:
                statements.append(statement)

        self.env.flush_all()
        self.env.invalidate_all()
        with patch.object(Cursor, "execute", spy):
            call()
        costly = ("enable_seqscan", "enable_bitmapscan", "enable_sort")
        for setting in costly:
            self.cr.execute(f"SET LOCAL {setting} = off")
        plans = []
        for statement in statements:
            self.cr.execute("EXPLAIN " + statement.replace("%", "%%"), [])
            plans.append("\n".join(line for (line,) in self.cr.fetchall()))
        for setting in costly:
            self.cr.execute(f"SET LOCAL {setting} = on")
        return plans

    def test_no_screen_reads_the_whole_table(self):
        jobs, dashboard = self.env["queue.job"], self.env["queue.dashboard"]
        latest = [("is_latest", "=", True)]
        screens = {
            "dashboard": dashboard.get_now,
            "channels": self.env["queue.channel"].get_channels,
            "errors": lambda: self.env["queue.error.group"].web_search_read([], {"jobs": {}}),
            "list": lambda: jobs.web_search_read(latest, LIST, limit=80, order="id desc", count_limit=10001),
            "kanban": lambda: jobs.web_read_group(
                latest, ["state"], ["__count"], auto_unfold=True, unfold_read_specification=LIST
            ),
            "pivot": lambda: jobs.formatted_read_grouping_sets(
                latest, [[], ["model_name"], ["model_name", "state"]], ["__count", "duration:avg"]
            ),
            "graph": lambda: jobs.formatted_read_group(latest, ["channel", "state"], ["__count"]),
            "error text": lambda: jobs.web_search_read([("exc_info", "ilike", "x"), *latest], LIST, limit=80),
            "record": lambda: jobs.record_jobs_summary("test.job.target", self.target.id),
            **{period: lambda period=period: dashboard.get_history(period) for period in ("hour", "day", "week")},
        }
        for name, call in screens.items():
            plans = self.plans(call)
            self.assertTrue(plans, name)
            for plan in plans:
                with self.subTest(name):
                    self.assertNotRegex(plan, r"Seq Scan on queue_job\b")

    def test_the_latest_jobs_of_each_state_come_from_its_index(self):
        # among a few rows the planner finds any way as good
        self.cr.execute(
            "INSERT INTO queue_job SELECT (jsonb_populate_record(job, jsonb_build_object("
            " 'id', nextval('queue_job_id_seq'), 'uuid', gen_random_uuid()))).*"
            "  FROM queue_job job, generate_series(1, 3000) WHERE id = %s",
            (self.in_state("done").id,),
        )
        (plan,) = self.plans(lambda: self.env["queue.job"].search([("is_latest", "=", True)], order="id desc"))
        for index, uses in [("running", 1), ("waiting", 2), ("ended", 3), ("pkey", 1)]:
            with self.subTest(index):
                self.assertEqual(plan.count(f"queue_job_{index}"), uses, plan)

    def test_the_latest_are_those_that_ended_last_or_were_stored_last(self):
        done = [self.in_state("done") for _number in range(3)]
        for job, moment in zip(done, ("2026-01-02", "2026-01-01", "2026-01-03"), strict=True):
            self.set_column(job, "completed_at", moment)
        pending = [self.enqueue() for _number in range(3)]
        with patch.object(queries, "LATEST_LIMIT", 2):
            jobs = self.env["queue.job"].search([("payload", "!=", False), ("is_latest", "=", True)])
            self.assertEqual(set(jobs), {done[0], done[2], pending[1], pending[2]})
            self.assertEqual([job.is_latest for job in pending], [False, True, True])
            older = self.env["queue.job"].search([("is_latest", "=", False)])
            self.assertEqual(set(older), {done[1], pending[0]})
