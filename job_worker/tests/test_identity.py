import random
import threading
from unittest.mock import patch
from uuid import uuid4

import psycopg2
from odoo.exceptions import ConcurrencyError
from odoo.service.model import PG_CONCURRENCY_EXCEPTIONS_TO_RETRY
from odoo.tools import mute_logger

from .case import JobCase
from .common import external_env
from odoo.addons.job_worker.delay import chain, group
from odoo.addons.job_worker.job import identity_exact
from odoo.addons.job_worker.lifecycle import move


class TestIdentity(JobCase):
    """Section 1.3."""

    def enqueue(self, key="key", **options):
        return self.target.with_delay(identity_key=key, **options).job_echo()

    def call(self, name, key=None):
        return self.target.delayable(identity_key=key).job_echo(name)

    def test_while_a_job_is_waiting_pending_or_started_enqueueing_returns_it_and_stores_nothing(self):
        parent = self.target.with_delay().job_nothing()
        job = self.env["queue.job"].enqueue(
            "test.job.target", "job_echo", self.target.ids, identity_key="key", parent_id=parent.id
        )
        before = self.env["queue.job"].search_count([])
        for state in ("waiting", "pending", "started"):
            self.assertEqual(self.state(job), state)
            self.assertEqual(self.enqueue(), job)
            self.assertEqual(
                self.env["queue.job"].enqueue("test.job.target", "other", self.target.ids, identity_key="key"), job
            )
            if state == "waiting":
                self.work(parent)
            elif state == "pending":
                move(self.cr, "claim", job.ids, worker_id="w")
        self.assertEqual(self.env["queue.job"].search_count([]), before)

    def test_after_it_ended_enqueueing_stores_a_new_one(self):
        done = self.enqueue()
        self.work(done)
        failed = self.enqueue()
        self.work(failed, "boom")
        cancelled = self.enqueue()
        cancelled.button_cancelled()
        self.assertEqual(len(done | failed | cancelled | self.enqueue()), 4)

    def test_a_callable_gets_the_delayable(self):
        job = self.enqueue(lambda call: f"{call.model_name} {call.method_name} {call.recordset.ids}")
        self.assertEqual(job.identity_key, f"test.job.target job_echo {self.target.ids}")

    def test_a_callable_that_does_not_return_a_string_is_a_type_error(self):
        with self.assertRaisesRegex(TypeError, "identity_key"):
            self.enqueue(lambda call: 7)

    def test_a_key_of_any_length_works(self):
        long = "".join(map(chr, random.Random(1).choices(range(0x100, 0x2000), k=100_000)))
        job = self.enqueue(long)
        self.assertEqual(self.enqueue(long), job)
        self.assertEqual(self.enqueue(lambda call: long), job)
        self.assertEqual(chain(self.call("a", long), self.call("b")).delay()[0], job)
        self.assertEqual(self.env["queue.job"].enqueue("test.job.target", "other", [], identity_key=long), job)
        self.assertNotEqual(self.enqueue(long + "!"), job)
        self.assertLess(len(job.identity_key), 200)
        with patch.object(
            self.env.registry["test.job.target"], "_job_store_values", lambda *args: {"identity_key": long}
        ):
            self.assertEqual(self.enqueue("short"), job)

    def test_an_empty_key_is_none(self):
        self.assertNotEqual(self.enqueue(""), self.enqueue(""))

    def test_a_unique_index_backs_it(self):
        job, other = self.enqueue("one"), self.enqueue("two")
        with self.assertRaises(psycopg2.errors.UniqueViolation), mute_logger("odoo.sql_db"), self.cr.savepoint():
            self.cr.execute("UPDATE queue_job SET identity_key = 'one' WHERE id = %s", (other.id,))
        self.assertEqual(self.enqueue("one"), job)

    def test_requeueing_is_skipped_where_an_active_job_holds_the_key(self):
        old = self.enqueue()
        self.work(old)
        new = self.enqueue()
        old.button_requeue()
        self.assertEqual((self.state(old), self.state(new)), ("done", "pending"))
        new.button_cancelled()
        (old | new).button_requeue()
        self.assertEqual(self.states(old | new), ["pending", "cancelled"])

    # --- identity_exact ----------------------------------------------------------------------------------------------

    def key(self, records, *args, **kwargs):
        call = records.delayable().job_echo(*args, **kwargs)
        call.delay()
        return identity_exact(call)

    def test_identity_exact_is_the_same_for_the_same_call(self):
        self.assertEqual(self.key(self.target, 1, a=2, b=3), self.key(self.target, 1, b=3, a=2))
        self.assertRegex(self.key(self.target), "^[0-9a-f]{40}$")

    def test_identity_exact_does_not_mind_the_order_of_the_ids(self):
        records = self.target | self.target.create({})
        self.assertEqual(self.key(records), self.key(records[::-1]))

    def test_identity_exact_differs_by_model_method_ids_args_and_kwargs(self):
        other = self.target.delayable().job_nothing()
        other.delay()
        keys = [
            self.key(self.target),
            self.key(self.target.create({})),
            self.key(self.env["res.partner"].browse(self.target.id)),
            self.key(self.target, 1),
            self.key(self.target, "1"),
            self.key(self.target, a=1),
            identity_exact(other),
        ]
        self.assertEqual(len(set(keys)), len(keys))

    def test_identity_exact_as_the_option(self):
        first = self.target.with_delay(identity_key=identity_exact).job_echo(1)
        self.assertEqual(self.target.with_delay(identity_key=identity_exact).job_echo(1), first)
        self.assertNotEqual(self.target.with_delay(identity_key=identity_exact).job_echo(2), first)

    # --- in graphs ---------------------------------------------------------------------------------------------------

    def test_duplicates_inside_a_graph_are_one_job(self):
        jobs = group(self.call("a", "key"), self.call("b", "key"), self.call("c")).delay()
        self.assertEqual([job.payload["args"] for job in jobs], [["a"], ["c"]])

    def test_what_follows_a_duplicate_follows_the_job_that_has_the_key(self):
        jobs = group(self.call("a", "key"), chain(self.call("b", "key"), self.call("c"))).delay()
        self.assertEqual(len(jobs), 2)
        self.assertEqual(jobs[1].parent_id, jobs[0])

    def test_a_node_whose_key_an_existing_job_has_is_that_job(self):
        job = self.enqueue()
        jobs = chain(self.call("a", "key"), self.call("b")).delay()
        self.assertEqual(jobs[0], job)
        self.assertEqual((jobs[1].parent_id, jobs[1].state), (job, "waiting"))
        self.work(job)
        self.assertEqual(self.state(jobs[1]), "pending")

    def test_what_follows_a_node_that_exists_still_follows_what_precedes_it(self):
        job = self.enqueue()
        jobs = chain(self.call("a"), self.call("b", "key"), self.call("c")).delay()
        a, c = jobs[0], jobs[2]
        self.assertEqual(jobs[1], job)
        self.assertEqual(c.dependency_job_ids, a | job)
        self.work(job)
        self.assertEqual(self.state(c), "waiting")
        self.work(a)
        self.assertEqual(self.state(c), "pending")

    def test_a_chain_whose_end_duplicates_its_beginning_keeps_its_order(self):
        jobs = chain(self.call("a", "key"), self.call("b"), self.call("c", "key"), self.call("d")).delay()
        self.assertEqual([job.payload["args"][0] for job in jobs], ["a", "b", "d"])
        self.assertEqual(jobs[2].dependency_job_ids, jobs[0] | jobs[1])

    def test_a_graph_of_which_all_exists_stores_nothing(self):
        one, two = self.enqueue("one"), self.enqueue("two")
        before = self.env["queue.job"].search_count([])
        self.assertEqual(chain(self.call("a", "one"), self.call("b", "two")).delay(), one | two)
        self.assertEqual(self.env["queue.job"].search_count([]), before)
        self.assertEqual(self.states(one | two), ["pending", "pending"])

    def test_a_dependency_on_a_job_of_an_earlier_graph_ends_right_whatever_becomes_of_it(self):
        for end, expected in (
            (lambda job: self.work(job), ["pending", "cancelled"]),
            (lambda job: self.work(job, "boom"), ["failed", "pending"]),
            (lambda job: job.button_cancelled(), ["cancelled", "cancelled"]),
        ):
            earlier = chain(self.call("a"), self.call("b", "key")).delay()
            node = self.call("x", "key")
            jobs = node.on_done(self.call("y")).on_error(self.call("z")).delay() - earlier
            self.assertEqual(self.states(jobs), ["waiting", "waiting"])
            self.work(earlier[0])
            end(earlier[1])
            self.assertEqual(self.states(jobs), expected)


class TestIdentityBetweenTransactions(JobCase):
    """Section 1.3: never two active jobs, also between concurrent transactions."""

    ROUNDS = 200

    def setUp(self):
        super().setUp()
        self.race = str(uuid4())

    @mute_logger("odoo.sql_db")
    def test_two_sessions_that_enqueue_the_same_key_at_the_same_moment(self):
        self.addCleanup(self._delete)
        start, stored = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)
        outcomes = [[], []]

        def session(number, env):
            for index in range(self.ROUNDS):
                # in half of the rounds with a snapshot from before the other one stores
                if index % 2:
                    env.cr.execute("SELECT 1")
                start.wait()
                outcomes[number].append(self._enqueue(env, f"{self.race} {index}"))
                stored.wait()

        with external_env(self.env) as (_cr1, env1), external_env(self.env) as (_cr2, env2):
            threads = [threading.Thread(target=session, args=pair) for pair in enumerate((env1, env2))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
        self.assertEqual([len(outcome) for outcome in outcomes], [self.ROUNDS] * 2)
        with external_env(self.env) as (cr, _env):
            cr.execute(
                "SELECT identity_key, min(id), count(*) FROM queue_job"
                " WHERE identity_key LIKE %s GROUP BY identity_key",
                (f"{self.race} %",),
            )
            active = {key: (job_id, count) for key, job_id, count in cr.fetchall()}
        refused = 0
        for index, results in enumerate(zip(*outcomes, strict=True)):
            job_id, count = active[f"{self.race} {index}"]
            self.assertEqual(count, 1)
            for result in results:
                if isinstance(result, Exception):
                    self.assertIsInstance(result, (*PG_CONCURRENCY_EXCEPTIONS_TO_RETRY, ConcurrencyError))
                    refused += 1
                else:
                    self.assertEqual(result, job_id)
        self.assertLess(refused, 2 * self.ROUNDS, "nobody ever won")
        self.assertTrue(refused, "the sessions never met")

    @staticmethod
    def _enqueue(env, key):
        """The id of the job, or what was raised."""
        try:
            job = env["res.partner"].with_delay(identity_key=key, channel="test.paused").anything()
            env.cr.commit()
            return job.id
        except Exception as error:  # what it is, is asserted in the main thread
            env.cr.rollback()
            return error

    def _delete(self):
        with external_env(self.env) as (cr, _env):
            cr.execute("DELETE FROM queue_job WHERE identity_key LIKE %s", (f"{self.race} %",))
