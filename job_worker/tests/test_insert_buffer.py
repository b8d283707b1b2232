# pylint: disable=invalid-commit
import io
import itertools
import threading
from functools import partial
from unittest.mock import patch

from odoo import sql_db
from odoo.tools import mute_logger
from psycopg2.errors import DivisionByZero, ForeignKeyViolation, InFailedSqlTransaction, UniqueViolation
from psycopg2.extensions import cursor

from .. import queries
from .case import JobCase
from .common import external_env, trap_jobs
from odoo.addons.job_worker.delay import group

_channels = itertools.count(1)


class TracingCursor(cursor):
    """Keeps the statements that it was given in ``traced``."""

    def execute(self, query, *args):
        self.traced.append(query)
        return super().execute(query, *args)


class BufferCase(JobCase):
    def setUp(self):
        super().setUp()
        self.channel = f"buffered {next(_channels)}"

    def enqueue_in_a_row(self, count=5, env=None, **options):
        """Jobs that nothing comes between, so that those after the first wait in the buffer."""
        target = (env or self.env)["test.job.target"]
        jobs = [target.with_delay(channel=self.channel, **options).job_echo(number) for number in range(count)]
        return jobs[0].union(*jobs)

    def ids(self, cr=None):
        """Ids of the stored jobs, by SQL, which the ORM has no part in."""
        cr = cr or self.cr
        cr.execute("SELECT id FROM queue_job WHERE channel = %s ORDER BY id", (self.channel,))
        return [row[0] for row in cr.fetchall()]


class TestInsertBuffer(BufferCase):
    """Jobs in a row go to the server together, and whatever comes next finds them there."""

    def test_a_thousand_in_a_row_take_few_statements(self):
        with patch.object(queries, "insert_jobs", side_effect=queries.insert_jobs) as insert:
            jobs = self.enqueue_in_a_row(1000)
            self.cr.flush()
        self.assertLess(insert.call_count, 15)
        self.assertEqual(self.ids(), jobs.ids)

    def test_ids_ascend_in_the_order_of_the_calls(self):
        jobs = self.enqueue_in_a_row(20)
        self.assertEqual(jobs.ids, sorted(jobs.ids))
        self.assertEqual([job.payload["args"] for job in jobs], [[number] for number in range(20)])

    def test_every_way_to_the_server_finds_them(self):
        def by_sql():
            return self.ids()

        def by_copy():
            text = io.StringIO()
            self.cr.copy_expert(
                f"COPY (SELECT id FROM queue_job WHERE channel = '{self.channel}' ORDER BY id) TO STDOUT", text
            )
            return list(map(int, text.getvalue().split()))

        def by_the_cursor_beneath():
            self.cr._obj.execute("SELECT id FROM queue_job WHERE channel = %s ORDER BY id", (self.channel,))
            return [row[0] for row in self.cr._obj.fetchall()]

        def by_executemany():
            self.cr.executemany("UPDATE queue_job SET name = %s WHERE channel = %s", [("seen", self.channel)])
            return self.env["queue.job"].search([("name", "=", "seen"), ("channel", "=", self.channel)], order="id").ids

        def by_search():
            return self.env["queue.job"].search([("channel", "=", self.channel)], order="id").ids

        def by_write():
            jobs = self.env["queue.job"].browse(seen_ids)
            jobs.priority = 3
            jobs.flush_recordset()
            return jobs.filtered(lambda job: job.priority == 3).ids

        for way in (by_sql, by_copy, by_the_cursor_beneath, by_executemany, by_search, by_write):
            with self.subTest(way.__name__):
                self.channel = f"buffered {next(_channels)}"
                jobs = self.enqueue_in_a_row()
                seen_ids = jobs.ids
                self.assertEqual(way(), jobs.ids)

    def test_a_savepoint_divides_what_is_kept_from_what_is_not(self):
        for flush in (True, False):
            with self.subTest(flush=flush):
                self.channel = f"buffered {next(_channels)}"
                before = self.enqueue_in_a_row()
                try:
                    with self.cr.savepoint(flush=flush):
                        within = self.enqueue_in_a_row()
                        raise KeyError
                except KeyError:
                    after = self.enqueue_in_a_row()
                self.assertFalse(within.exists())
                self.assertEqual(self.ids(), [*before.ids, *after.ids])

    def test_what_a_savepoint_kept_stays(self):
        for flush in (True, False):
            with self.subTest(flush=flush):
                self.channel = f"buffered {next(_channels)}"
                with self.cr.savepoint(flush=flush):
                    within = self.enqueue_in_a_row()
                self.assertEqual(self.ids(), within.ids)

    def test_other_jobs_come_in_between(self):
        first = self.enqueue_in_a_row(3)
        keyed = self.enqueue_in_a_row(1, identity_key=self.channel)
        second = self.enqueue_in_a_row(3)
        many = group(*(self.target.delayable(channel=self.channel).job_nothing() for _number in range(3))).delay()
        third = self.enqueue_in_a_row(3)
        same = self.enqueue_in_a_row(1, identity_key=self.channel)
        self.assertEqual(same, keyed)
        self.assertEqual(self.ids(), (first + keyed + second + many + third).ids)

    def test_a_job_may_wait_for_one_that_is_still_in_the_buffer(self):
        parent = self.enqueue_in_a_row(3)[-1]
        child = self.env["queue.job"].enqueue(
            "test.job.target", "job_nothing", channel=self.channel, parent_id=parent.id
        )
        self.assertEqual((child.parent_id, child.state), (parent, "waiting"))

    def test_a_big_payload_is_not_kept(self):
        self.enqueue_in_a_row(3)
        with patch.object(queries, "insert_jobs", side_effect=queries.insert_jobs) as insert:
            self.target.with_delay(channel=self.channel).job_echo("x" * 2**20)
            insert.assert_called_once()

    def error_of(self, do):
        """What ``do`` raises; not with ``assertRaises()``, which Odoo puts into a savepoint."""
        try:
            do()
        except Exception as error:
            return type(error)
        return None

    def test_they_are_counted_logged_and_profiled(self):
        profiled = []
        thread = threading.current_thread()
        hooks = [*getattr(thread, "query_hooks", ()), lambda _cr, query, *_rest: profiled.append(str(query))]
        counted = self.cr.sql_log_count, sql_db.sql_counter
        with patch.object(thread, "query_hooks", hooks, create=True), self.assertLogs("odoo.sql_db", "DEBUG") as logs:
            self.enqueue_in_a_row(3)
            self.cr.flush()
        expected = ["INSERT INTO queue_job", "nextval('queue_job_id_seq')", "COPY queue_job"]
        for seen in (profiled, logs.output):
            self.assertEqual([sum(text in query for query in seen) for text in expected], [1, 1, 1])
        self.assertEqual(
            (self.cr.sql_log_count - counted[0], sql_db.sql_counter - counted[1]), (len(profiled), len(profiled))
        )

    def test_values_of_a_model_that_the_table_refuses_are_told_at_the_call(self):
        model = self.env.registry["test.job.target"]
        for values in ({"user_id": 2**31 - 1}, {"company_id": 2**31 - 1}):
            with mute_logger("odoo.sql_db"), self.cr.savepoint(flush=False) as savepoint:
                self.enqueue_in_a_row(3)
                with patch.object(model, "_job_store_values", lambda *args, values=values: values):
                    self.assertEqual(self.error_of(lambda: self.enqueue_in_a_row(1)), ForeignKeyViolation)
                savepoint.rollback()

    def test_what_is_wrong_with_a_call_is_told_at_the_call(self):
        self.enqueue_in_a_row(3)
        for call in (
            lambda: self.target.with_delay(description="\ud800").job_nothing(),
            lambda: self.target.browse(2**40).with_delay().job_nothing(),
        ):
            self.assertEqual(self.error_of(call), ValueError)

    def test_a_job_of_another_user_begins_a_row_of_its_own(self):
        self.enqueue_in_a_row(3)
        other = self.env.ref("base.user_admin")
        with patch.object(queries, "insert_jobs", side_effect=queries.insert_jobs) as insert:
            self.target.with_user(other).with_delay(channel=self.channel).job_nothing()
            self.assertTrue(insert.called)

    def test_a_delay_counts_from_the_call(self):
        with patch.object(queries, "insert_jobs", side_effect=queries.insert_jobs) as insert:
            self.enqueue_in_a_row(3, eta=30)
            self.assertEqual(insert.call_count, 3)

    def test_a_rollback_to_a_savepoint_works_whatever_is_kept(self):
        with self.assertRaises(KeyError), self.cr.savepoint():
            first = self.enqueue_in_a_row(1)
            with patch.object(queries, "reserve_job_ids", return_value=first.ids * 4):
                self.enqueue_in_a_row(3)  # would violate the primary key
            raise KeyError
        jobs = self.enqueue_in_a_row(3)
        self.assertEqual(self.ids(), jobs.ids)

    def test_after_an_error_of_the_server_the_next_fails_at_the_call(self):
        before = self.enqueue_in_a_row(3)
        with mute_logger("odoo.sql_db"), self.cr.savepoint(flush=False) as savepoint:
            errors = [
                self.error_of(lambda: self.cr.execute("SELECT 1 / 0")),
                self.error_of(lambda: self.enqueue_in_a_row(1)),
            ]
            savepoint.rollback()
        self.assertEqual(errors, [DivisionByZero, InFailedSqlTransaction])
        after = self.enqueue_in_a_row(3)
        self.assertEqual(self.ids(), (before + after).ids)

    def test_an_error_at_their_insert_leaves_none_of_them_behind(self):
        with mute_logger("odoo.sql_db"), self.assertRaises(UniqueViolation), self.cr.savepoint():
            with patch.object(queries, "reserve_job_ids", return_value=self.enqueue_in_a_row(1).ids * 4):
                self.enqueue_in_a_row(3)
            self.cr.execute("SELECT 1")
        self.assertEqual(self.ids(), [])
        jobs = self.enqueue_in_a_row(3)
        self.assertEqual(self.ids(), jobs.ids)

    def test_without_delay_each_runs_in_its_turn(self):
        target = self.target.with_context(queue_job__no_delay=True)
        counters = []
        for _number in range(4):
            job = target.with_delay(channel=self.channel).job_write()
            counters.append((job.state, target.counter))
        self.assertEqual(counters, [("done", 1), ("done", 2), ("done", 3), ("done", 4)])

    def test_a_trap_catches_them(self):
        with trap_jobs(self.env) as trap:
            jobs = self.enqueue_in_a_row()
            trap.assert_jobs_count(5)
            trap.perform_enqueued_jobs()
        self.assertEqual(set(jobs.mapped("state")), {"done"})


class TestTransactions(BufferCase):
    """The buffer is part of the transaction."""

    def setUp(self):
        super().setUp()
        self.addCleanup(self._delete)

    def _delete(self):
        with external_env(self.env) as (cr, _env):
            cr.execute("DELETE FROM queue_job WHERE channel LIKE 'buffered %'")

    def stored(self):
        with external_env(self.env) as (cr, _env):
            return self.ids(cr)

    def test_a_commit_stores_what_is_in_it(self):
        with external_env(self.env) as (cr, env):
            jobs = self.enqueue_in_a_row(env=env)
            cr.commit()
            self.assertEqual(self.stored(), jobs.ids)
            more = self.enqueue_in_a_row(env=env)
        self.assertEqual(self.stored(), [*jobs.ids, *more.ids])

    def test_a_rollback_forgets_it(self):
        with external_env(self.env) as (cr, env):
            self.enqueue_in_a_row(env=env)
            cr.rollback()
            self.assertEqual(self.ids(cr), [])
            jobs = self.enqueue_in_a_row(env=env)
        self.assertEqual(self.stored(), jobs.ids)

    def test_a_rollback_forgets_what_is_enqueued_while_it_is_on_its_way(self):
        with external_env(self.env) as (cr, env):
            self.enqueue_in_a_row(env=env)
            cr.prerollback.add(lambda: self.enqueue_in_a_row(env=env))
            cr.rollback()
            jobs = self.enqueue_in_a_row(env=env)
        self.assertEqual(self.stored(), jobs.ids)

    def test_an_error_forgets_it(self):
        with self.assertRaises(KeyError), external_env(self.env) as (_cr, env):
            self.enqueue_in_a_row(env=env)
            raise KeyError
        self.assertEqual(self.stored(), [])

    def test_what_is_enqueued_while_the_transaction_ends_is_stored(self):
        with external_env(self.env) as (cr, env):
            jobs = env["queue.job"]

            @cr.precommit.add
            def enqueue():
                nonlocal jobs
                jobs += self.enqueue_in_a_row(env=env)

            jobs += self.enqueue_in_a_row(env=env)
        self.assertEqual(self.stored(), sorted(jobs.ids))

    def test_what_is_enqueued_while_the_transaction_ends_wakes_workers_too(self):
        with external_env(self.env) as (listener, _env), external_env(self.env) as (cr, env):
            listener.execute("LISTEN queue_job_wake_up")
            listener.commit()
            listener._cnx.notifies.clear()
            self.enqueue_in_a_row(1, env=env)
            cr.precommit.add(lambda: self.enqueue_in_a_row(1, env=env, priority=3))
            cr.commit()
            listener.execute("SELECT 1")
            notified = [note.payload for note in listener._cnx.notifies if note.pid == cr._cnx.get_backend_pid()]
            listener.execute("UNLISTEN *")
        priorities = [line.split("\t")[1] for payload in notified for line in payload.splitlines()]
        self.assertEqual(priorities, ["10", "3"])

    def test_the_connection_is_no_way_past_them(self):
        def commit(cr):
            cr._cnx.commit()

        def commit_as_context(cr):
            with cr._cnx:
                pass

        def another_cursor(cr):
            with cr._cnx.cursor() as raw:
                raw.execute("COMMIT")

        for way in (commit, commit_as_context, another_cursor):
            with self.subTest(way.__name__), external_env(self.env) as (cr, env):
                self.channel = f"buffered {next(_channels)}"
                jobs = self.enqueue_in_a_row(env=env)
                way(cr)
                self.assertEqual(self.stored(), jobs.ids)

    def test_a_rollback_of_the_connection_forgets_them(self):
        with external_env(self.env) as (cr, env):
            self.enqueue_in_a_row(env=env)
            cr._cnx.rollback()
            jobs = self.enqueue_in_a_row(env=env)
        self.assertEqual(self.stored(), jobs.ids)

    def test_a_connection_that_nobody_stores_jobs_on_any_more_is_as_it_was(self):
        with external_env(self.env) as (cr, env):
            connection, before = cr._cnx, dict(vars(cr._cnx))
            self.enqueue_in_a_row(env=env)
            self.assertNotEqual(vars(connection), before)
            cr.rollback()
            self.assertEqual(vars(connection), before)

    def test_who_traces_the_statements_of_a_connection_sees_each_insert(self):
        with external_env(self.env) as (cr, env):
            cr._obj = cr._cnx.cursor(cursor_factory=TracingCursor)
            cr._obj.traced = traced = []
            jobs = self.enqueue_in_a_row(3, env=env)
        self.assertEqual(sum("INSERT INTO queue_job" in query for query in traced), 3)
        self.assertEqual(self.stored(), jobs.ids)

    def test_who_watches_a_connection_sees_each_insert(self):
        with external_env(self.env) as (cr, env):
            cr._cnx.commit = partial(cr._cnx.commit)
            with patch.object(queries, "insert_jobs", side_effect=queries.insert_jobs) as insert:
                self.enqueue_in_a_row(3, env=env)
            self.assertEqual(insert.call_count, 3)
            del cr._cnx.commit

    def test_two_transactions_keep_theirs_apart(self):
        with external_env(self.env) as (cr1, env1), external_env(self.env) as (cr2, env2):
            target1, target2 = (env["test.job.target"] for env in (env1, env2))
            for number in range(5):
                target1.with_delay(channel=self.channel).job_echo(1, number)
                target2.with_delay(channel=self.channel).job_echo(2, number)
            self.assertEqual([len(self.ids(cr1)), len(self.ids(cr2))], [5, 5])
            cr2.rollback()
        self.assertEqual(len(self.stored()), 5)


class TestWithinTests(BufferCase):
    """Cursors of Odoo's tests share one transaction: a request sees what the test enqueued, and the other way round."""

    def test_the_cursor_of_a_request_sees_those_of_the_test(self):
        jobs = self.enqueue_in_a_row()
        with self.enter_registry_test_mode(), self.registry.cursor() as cr:
            self.assertEqual(self.ids(cr), jobs.ids)

    def test_what_the_request_rolls_back_is_only_its_own(self):
        jobs = self.enqueue_in_a_row()
        with self.enter_registry_test_mode(), self.registry.cursor() as cr:
            env = self.env(cr=cr)
            self.assertEqual(self.ids(cr), jobs.ids)
            self.enqueue_in_a_row(env=env)
            cr.rollback()
            kept = self.enqueue_in_a_row(env=env)
            cr.commit()
            self.enqueue_in_a_row(env=env)
            cr.rollback()
        more = self.enqueue_in_a_row()
        self.assertEqual(self.ids(), (jobs + kept + more).ids)

    def test_the_first_thing_a_request_does_may_be_to_enqueue(self):
        with self.enter_registry_test_mode():
            jobs = self.enqueue_in_a_row()
            with self.registry.cursor() as cr:
                self.enqueue_in_a_row(env=self.env(cr=cr))
                cr.rollback()
        self.assertEqual(self.ids(), jobs.ids)


class TestOutsideOfTests(BufferCase):
    """Odoo sets callbacks back before and after each test, to what they were at its begin."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.jobs = [cls.target.with_delay(channel="of the class").job_nothing() for _number in range(5)]

    def find(self):
        self.assertEqual(
            self.env["queue.job"].search([("channel", "=", "of the class")], order="id").ids,
            [job.id for job in self.jobs],
        )
        self.enqueue_in_a_row()

    def test_jobs_of_the_class_are_there_in_the_first_test(self):
        self.find()

    def test_jobs_of_the_class_are_there_in_the_second_test(self):
        self.find()
