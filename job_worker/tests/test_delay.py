# pylint: disable=invalid-commit
# sessions of their own, which commit as workers and users do
from datetime import datetime, timedelta, timezone
from unittest.mock import patch

from odoo.tests import new_test_user

from .case import JobCase
from .common import assert_dt_between, external_env, now_with_slack
from odoo.addons.job_worker import delay as delay_module
from odoo.addons.job_worker.delay import Delayable, DelayableChain, DelayableGroup, chain, group


class TestWithDelay(JobCase):
    """Section 1: ``with_delay(**options)`` and its options."""

    def count(self):
        return self.env["queue.job"].search_count([])

    def test_with_delay_stores_one_job_and_returns_that_record(self):
        before = self.count()
        job = self.target.with_delay().job_echo(1, key="value")
        self.assertEqual(job._name, "queue.job")
        self.assertEqual(self.count(), before + 1)
        self.assertEqual(
            (job.model_name, job.method_name, job.record_ids), ("test.job.target", "job_echo", self.target.ids)
        )
        self.assertEqual((job.payload["args"], job.payload["kwargs"]), ([1], {"key": "value"}))

    def test_with_delay_works_on_any_recordset_of_any_model(self):
        for records in (
            self.env["res.partner"],
            self.env["res.partner"].create([{"name": "a"}, {"name": "b"}]),
            self.env["ir.config_parameter"].search([], limit=1),
            self.env["ir.qweb"],
        ):
            job = records.with_delay().anything()
            self.assertEqual((job.model_name, job.record_ids or []), (records._name, records.ids))

    def test_a_user_outside_the_groups_can_enqueue_and_gets_the_job(self):
        user = new_test_user(self.env, "job_plain")
        job = self.target.with_user(user).with_delay().job_nothing()
        self.assertEqual((job.state, job.user_id), ("pending", user))

    def test_defaults(self):
        job = self.target.with_delay().job_nothing()
        self.assertEqual(
            (job.channel, job.priority, job.scheduled_at, job.max_retries, job.timeout, job.identity_key),
            ("root", 10, False, 5, 0, False),
        )
        self.assertEqual((job.state, job.attempts, job.graph_uuid), ("pending", 0, False))
        self.assertEqual(len(job.uuid), 36)

    def test_none_means_the_default(self):
        job = self.target.with_delay(channel=None, priority=None, eta=None, max_retries=None).job_nothing()
        self.assertEqual((job.channel, job.priority, job.max_retries), ("root", 10, 5))

    def test_channel_priority_max_retries_timeout_and_description_are_stored(self):
        job = self.target.with_delay(
            channel="mail", priority=-3, max_retries=0, timeout=7, description="Say hello"
        ).job_nothing()
        self.assertEqual(
            (job.channel, job.priority, job.max_retries, job.timeout, job.name), ("mail", -3, 0, 7, "Say hello")
        )

    def test_eta_and_scheduled_at_take_a_naive_datetime_as_utc(self):
        moment = datetime(2050, 1, 2, 3, 4, 5)
        for option in ("eta", "scheduled_at"):
            job = self.target.with_delay(**{option: moment}).job_nothing()
            self.assertEqual(job.scheduled_at, moment)
            self.assertFalse(job.is_due)

    def test_eta_converts_an_aware_datetime(self):
        moment = datetime(2050, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
        self.assertEqual(self.target.with_delay(eta=moment).job_nothing().eta, datetime(2050, 1, 2, 1, 4, 5))

    def test_eta_takes_a_timedelta_or_seconds_from_now(self):
        lower, upper = now_with_slack()
        minute = timedelta(seconds=60)
        for eta in (minute, 60, 60.0):
            job = self.target.with_delay(eta=eta).job_nothing()
            assert_dt_between(self, job.scheduled_at, lower + minute, upper + minute)
            self.assertFalse(job.is_due)

    def test_an_eta_in_the_past_is_due_at_once(self):
        for eta in (-5, 0, datetime(2000, 1, 1)):
            self.assertTrue(self.target.with_delay(eta=eta).job_nothing().is_due)

    def test_eta_and_scheduled_at_both_given_and_different_is_a_value_error(self):
        with self.assertRaisesRegex(ValueError, "differ"):
            self.target.with_delay(eta=5, scheduled_at=6)

    def test_eta_and_scheduled_at_both_given_and_the_same_is_fine(self):
        moment = datetime(2050, 1, 1)
        aware = moment.replace(tzinfo=timezone.utc)
        self.assertEqual(self.target.with_delay(eta=moment, scheduled_at=aware).job_nothing().eta, moment)

    def test_an_unknown_option_is_a_value_error_at_the_call(self):
        for make in (self.target.with_delay, self.target.delayable):
            with self.assertRaisesRegex(ValueError, "No property 'prio'"):
                make(prio=1)

    def test_a_negative_timeout_or_retry_count_is_a_value_error(self):
        for option in ("timeout", "max_retries"):
            with self.assertRaisesRegex(ValueError, option):
                self.target.with_delay(**{option: -1})

    def test_a_channel_that_no_index_can_hold_is_a_value_error(self):
        self.assertEqual(self.target.with_delay(channel="c" * 200).job_nothing().channel, "c" * 200)
        with self.assertRaisesRegex(ValueError, "channel"):
            self.target.with_delay(channel="c" * 201)

    def test_an_option_of_a_wrong_type_is_a_type_error(self):
        for name, value in {
            "channel": 3,
            "priority": "high",
            "eta": "tomorrow",
            "max_retries": 1.5,
            "timeout": True,
            "identity_key": 5,
            "description": 7,
        }.items():
            with self.subTest(name), self.assertRaisesRegex(TypeError, name):
                self.target.with_delay(**{name: value})

    def test_a_dunder_or_empty_method_name_is_an_error_and_stores_nothing(self):
        before = self.count()
        for name in ("", "__class_getitem__", "not a name"):
            with self.subTest(name), self.assertRaises(ValueError):
                getattr(self.target.with_delay(), name)
            with self.subTest(name), self.assertRaises(ValueError):
                self.env["queue.job"].enqueue("test.job.target", name, self.target.ids)
        self.assertEqual(self.count(), before)

    def test_an_argument_that_cant_be_serialised_is_an_error_that_names_it_and_stores_nothing(self):
        before = self.count()
        with self.assertRaisesRegex(TypeError, "argument 2 of test.job.target.job_echo"):
            self.target.with_delay().job_echo(1, object())
        with self.assertRaisesRegex(TypeError, "argument 'key' of test.job.target.job_echo"):
            self.target.with_delay().job_echo(key=[object()])
        self.assertEqual(self.count(), before)

    def test_a_method_the_model_does_not_have_is_accepted_and_fails_at_run_time(self):
        job = self.target.with_delay(max_retries=1).job_of_the_future()
        with self.assertRaisesRegex(AttributeError, "job_of_the_future"), self.cr.savepoint():
            job.run_now()

    def test_a_method_may_be_called_like_something_of_a_delayable(self):
        for name in ("set", "split", "delay", "args", "recordset"):
            job = getattr(self.target.with_delay(), name)(1)
            self.assertEqual((job.method_name, job.payload["args"]), (name, [1]))

    def test_a_record_that_is_not_saved_yet_is_a_type_error(self):
        with self.assertRaisesRegex(TypeError, "not saved yet"):
            self.target.new({}).with_delay().job_nothing()

    def test_with_delay_takes_keyword_arguments_of_any_name(self):
        job = self.target.with_delay().job_echo(self=1, name=2, args=3)
        self.assertEqual(job.payload["kwargs"], {"self": 1, "name": 2, "args": 3})


class TestEnqueue(JobCase):
    """Section 1: the direct form."""

    def enqueue(self, *args, **kwargs):
        return self.env["queue.job"].enqueue("test.job.target", "job_echo", self.target.ids, *args, **kwargs)

    def test_enqueue_returns_the_job(self):
        job = self.enqueue((1,), {"key": 2}, channel="mail", priority=3, max_retries=4, timeout=5, description="d")
        self.assertEqual((job.payload["args"], job.payload["kwargs"]), ([1], {"key": 2}))
        self.assertEqual(
            (job.channel, job.priority, job.max_retries, job.timeout, job.name, job.state),
            ("mail", 3, 4, 5, "d", "pending"),
        )

    def test_enqueue_an_unknown_model_is_a_value_error(self):
        with self.assertRaisesRegex(ValueError, "no.such.model"):
            self.env["queue.job"].enqueue("no.such.model", "method", [])

    def test_enqueue_in_a_graph_whose_name_no_index_can_hold_is_a_value_error(self):
        with self.assertRaisesRegex(ValueError, "graph_uuid"):
            self.enqueue(graph_uuid="g" * 201)

    def test_enqueue_with_a_parent_waits_for_it(self):
        parent = self.enqueue()
        child = self.enqueue(parent_id=parent.id, graph_uuid="g")
        self.assertEqual((child.state, child.parent_id, child.graph_uuid), ("waiting", parent, "g"))
        self.work(parent)
        self.assertEqual(self.state(child), "pending")

    def test_enqueue_with_dependencies_waits_for_all_of_them(self):
        parents = self.enqueue() + self.enqueue()
        child = self.enqueue(dependency_job_ids=parents.ids)
        self.assertEqual((child.state, child.dependency_job_ids, child.parent_id.id), ("waiting", parents, False))
        self.assertEqual(child.pending_dependency_count, 2)
        self.work(parents[0])
        self.assertEqual((self.state(child), child.pending_dependency_count), ("waiting", 1))
        self.work(parents[1])
        self.assertEqual(self.state(child), "pending")

    def test_enqueue_run_on_failure_waits_for_the_parent_to_fail(self):
        parent = self.enqueue()
        child = self.enqueue(parent_id=parent.id, run_on_failure=True)
        self.work(parent, "boom")
        self.assertEqual(self.state(child), "pending")

    def test_enqueue_after_a_parent_that_has_ended_is_decided_at_once(self):
        parent = self.enqueue()
        self.work(parent)
        self.assertEqual(self.enqueue(parent_id=parent.id).state, "pending")
        self.assertEqual(self.enqueue(parent_id=parent.id, run_on_failure=True).state, "cancelled")

    def test_enqueue_after_a_parent_that_does_not_exist_is_a_value_error(self):
        with self.assertRaisesRegex(ValueError, "does not exist"):
            self.enqueue(parent_id=2**31 - 1)

    def test_enqueue_takes_method_names_that_delayables_have_too(self):
        job = self.env["queue.job"].enqueue("test.job.target", "set", self.target.ids, (1,))
        self.assertEqual((job.method_name, job.payload["args"]), ("set", [1]))


class TestTransaction(JobCase):
    """Section 1: enqueueing is part of the caller's transaction."""

    def test_rolled_back_with_it(self):
        with external_env(self.env) as (cr, env):
            job = env["res.partner"].with_delay().anything()
            self.assertTrue(job.exists())
            cr.rollback()
        with external_env(self.env) as (_cr, env):
            self.assertFalse(env["queue.job"].browse(job.id).exists())

    def test_visible_to_workers_at_its_commit_which_wakes_them_with_one_notification(self):
        with external_env(self.env) as (listener, env_seen), external_env(self.env) as (cr, env):
            listener.execute("LISTEN queue_job_wake_up")
            listener.commit()
            connection = listener._cnx
            connection.poll()
            connection.notifies.clear()
            jobs = env["queue.job"]
            # a channel without seats: no worker that happens to run takes them
            for _index in range(3):
                jobs += env["res.partner"].with_delay(channel="test.paused").anything()
            group(*(env["res.partner"].delayable(channel="test.paused").anything() for _index in range(3))).delay()
            jobs = env["queue.job"].search([("channel", "=", "test.paused"), ("method_name", "=", "anything")])
            self.addCleanup(self._delete, jobs.ids)
            env.flush_all()
            listener.execute("SELECT 1")
            self.assertFalse(connection.notifies)
            self.assertFalse(env_seen["queue.job"].browse(jobs.ids).exists())
            cr.commit()
            listener.commit()  # a new snapshot; notifications arrive with the answer
            listener.execute("SELECT 1")
            ours = [note for note in connection.notifies if note.pid == cr._cnx.get_backend_pid()]
            self.assertEqual([note.channel for note in ours], ["queue_job_wake_up"])
            self.assertEqual(env_seen["queue.job"].browse(jobs.ids).exists(), jobs)
            listener.execute("UNLISTEN *")

    def _delete(self, ids):
        with external_env(self.env) as (cr, _env):
            cr.execute("DELETE FROM queue_job WHERE id = ANY(%s)", (ids,))


class TestDelayable(JobCase):
    """Section 1.2: delayables."""

    def test_delayable_captures_the_call_and_stores_nothing_until_delay(self):
        before = self.env["queue.job"].search_count([])
        call = self.target.delayable().job_echo(1)
        self.assertEqual(self.env["queue.job"].search_count([]), before)
        job = call.delay()
        self.assertEqual((job._name, len(job)), ("queue.job", 1))
        self.assertEqual(self.env["queue.job"].search_count([]), before + 1)

    def test_attributes_show_recordset_model_method_arguments_and_options(self):
        call = self.target.delayable(channel="mail", priority=2, eta=5, description="d", identity_key="k")
        call.job_echo(1, key=2).delay()
        self.assertEqual(
            (call.recordset, call.model_name, call.method_name), (self.target, "test.job.target", "job_echo")
        )
        self.assertEqual((call.args, call.kwargs), ((1,), {"key": 2}))
        self.assertEqual(
            (
                call.channel,
                call.priority,
                call.eta,
                call.description,
                call.identity_key,
                call.max_retries,
                call.timeout,
            ),
            ("mail", 2, 5, "d", "k", 5, 0),
        )

    def test_set_takes_keywords_or_a_dictionary(self):
        call = self.target.delayable().job_nothing().set(priority=1).set({"channel": "mail", "timeout": 3})
        job = call.delay()
        self.assertEqual((job.priority, job.channel, job.timeout), (1, "mail", 3))

    def test_set_of_an_unknown_key_is_a_value_error_starting_with_no_property(self):
        call = self.target.delayable()
        with self.assertRaisesRegex(ValueError, r"^No property 'colour'"):
            call.set(colour="red")
        with self.assertRaisesRegex(ValueError, r"^No property 'colour'"):
            call.set({"colour": "red"})

    def test_every_call_but_delay_returns_something_chainable(self):
        def call():
            return self.target.delayable().job_nothing()

        a = call()
        self.assertIs(a.set(priority=1), a)
        self.assertIs(a.on_done(call()), a)
        self.assertIs(a.on_error(call()), a)
        self.assertEqual(len(a.delay()), 3)
        parts = group(call())
        self.assertIs(parts.on_done(call()).on_error(call()), parts)
        self.assertIsInstance(parts, DelayableGroup)
        self.assertEqual(len(parts.delay()), 3)
        parts = chain(call())
        self.assertIs(parts.on_done(call()), parts)
        self.assertIsInstance(parts, DelayableChain)
        self.assertEqual(len(parts.delay()), 2)
        self.assertEqual(len(call().split(1).on_done(call()).delay()), 2)

    def test_one_that_was_never_delayed_logs_a_warning_that_names_model_and_method(self):
        with self.assertLogs(delay_module.__name__, "WARNING") as logs:
            call = self.target.delayable().job_echo(1)
            del call
        self.assertIn("test.job.target.job_echo() was never delayed", logs.output[0])

    def test_one_that_was_delayed_split_or_refused_logs_no_warning(self):
        with self.assertNoLogs(delay_module.__name__, "WARNING"):
            self.target.delayable().job_nothing().delay()
            self.target.delayable().job_nothing().split(1).delay()
            with self.assertRaises(TypeError):
                self.target.with_delay().job_echo(object())
            Delayable(self.target)

    def test_a_second_call_is_a_value_error(self):
        call = self.target.delayable().job_nothing()
        with self.assertRaisesRegex(ValueError, "captured already"):
            call.job_echo()
        call.delay()

    def test_delay_without_a_call_is_a_value_error(self):
        with self.assertRaisesRegex(ValueError, "no method"):
            self.target.delayable().delay()


class TestSplit(JobCase):
    """Section 1.2: ``split``."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.targets = cls.env["test.job.target"].create([{"name": str(number)} for number in range(5)])

    def call(self, **options):
        return self.targets.delayable(**options).job_echo(1, key=2)

    def chunks(self, jobs):
        return [job.record_ids for job in jobs]

    def test_split_cuts_the_recordset_into_a_group_of_chunks(self):
        jobs = self.call().split(2).delay()
        ids = self.targets.ids
        self.assertEqual(self.chunks(jobs), [ids[:2], ids[2:4], ids[4:]])
        self.assertEqual(self.states(jobs), ["pending"] * 3)
        self.assertEqual(len(set(jobs.mapped("graph_uuid"))), 1)

    def test_split_into_a_chain_runs_the_chunks_one_after_the_other(self):
        jobs = self.call().split(2, chain=True).delay()
        self.assertEqual(self.states(jobs), ["pending", "waiting", "waiting"])
        self.assertEqual(jobs[2].parent_id, jobs[1])

    def test_the_chunks_keep_call_and_options(self):
        jobs = self.call(channel="mail", priority=3, max_retries=1, timeout=9, description="d", eta=60).split(3).delay()
        for job in jobs:
            self.assertEqual((job.payload["args"], job.payload["kwargs"]), ([1], {"key": 2}))
            self.assertEqual(
                (job.channel, job.priority, job.max_retries, job.timeout, job.name), ("mail", 3, 1, 9, "d")
            )
            self.assertTrue(job.eta)

    def test_a_callable_identity_key_is_evaluated_per_chunk(self):
        jobs = self.call(identity_key=lambda call: f"key {call.recordset.ids[0]}").split(2).delay()
        self.assertEqual(jobs.mapped("identity_key"), [f"key {self.targets.ids[index]}" for index in (0, 2, 4)])

    def test_a_fixed_identity_key_makes_one_job_of_the_chunks(self):
        self.assertEqual(len(self.call(identity_key="the one").split(2).delay()), 1)

    def test_a_size_below_1_is_a_value_error(self):
        call = self.call()
        for size in (0, -1):
            with self.assertRaises(ValueError):
                call.split(size)
        call.delay()

    def test_an_empty_recordset_gives_an_empty_group_and_delaying_it_stores_nothing(self):
        before = self.env["queue.job"].search_count([])
        parts = self.targets.browse().delayable().job_nothing().split(10)
        self.assertIsInstance(parts, DelayableGroup)
        jobs = parts.delay()
        self.assertEqual((jobs._name, len(jobs)), ("queue.job", 0))
        self.assertEqual(self.env["queue.job"].search_count([]), before)

    def test_what_was_connected_before_the_split_precedes_and_follows_all_chunks(self):
        first = self.target.delayable().job_echo("first")
        last = self.target.delayable().job_echo("last")
        middle = self.call()
        first.on_done(middle)
        middle.on_done(last)
        middle.split(2)
        jobs = first.delay()
        self.assertEqual(len(jobs), 5)
        self.assertEqual(jobs[1:4].mapped("parent_id"), jobs[0])
        self.assertEqual(jobs[4].dependency_job_ids, jobs[1:4])

    def test_split_into_10000_chunks_is_a_handful_of_statements(self):
        records = self.env["res.partner"].browse(range(1, 10_001))
        with patch.object(type(self.env["queue.job"]), "_wake_workers_at_commit", lambda job: None):
            before = self.cr.sql_log_count
            jobs = records.delayable().anything().split(1).delay()
            statements = self.cr.sql_log_count - before
        self.assertEqual(len(jobs), 10_000)
        self.assertLess(statements, 40)
