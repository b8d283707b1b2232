import os
from datetime import datetime, timedelta
from unittest.mock import patch

from .case import JobCase
from .common import JobMixin, assert_dt_between, external_env, now_with_slack, trap_jobs
from odoo.addons.job_worker.delay import chain, group


class TestTrap(JobMixin, JobCase):
    """Section 6: ``trap_jobs``."""

    def message(self, check, *args, **kwargs):
        with self.assertRaises(AssertionError) as caught:
            check(*args, **kwargs)
        return str(caught.exception)

    def test_enqueued_jobs_describes_each_job(self):
        moment = datetime(2050, 1, 1)
        with trap_jobs(self.env) as trap:
            job = self.target.with_delay(
                priority=3, channel="mail", eta=moment, max_retries=4, description="Say", identity_key="k", timeout=5
            ).job_echo(1, (2, moment), key=self.target)
            self.target.browse().with_delay().job_nothing()
        described, bare = trap.enqueued_jobs
        self.assertEqual(
            described,
            {
                "job_record": job,
                "model_name": "test.job.target",
                "method_name": "job_echo",
                "record_ids": self.target.ids,
                "args": (1, (2, moment)),
                "kwargs": {"key": self.target},
                "priority": 3,
                "channel": "mail",
                "eta": moment,
                "max_retries": 4,
                "description": "Say",
                "identity_key": "k",
                "timeout": 5,
            },
        )
        self.assertEqual((bare["record_ids"], bare["args"], bare["kwargs"]), ([], (), {}))
        self.assertEqual((bare["eta"], bare["identity_key"]), (None, None))

    def test_the_jobs_are_stored_and_not_run(self):
        with self.trap_jobs() as trap, patch.dict(os.environ, {"QUEUE_JOB__NO_DELAY": "1"}):
            job = self.target.with_delay().job_nothing()
            direct = self.env["queue.job"].enqueue("test.job.target", "job_nothing", self.target.ids)
            graph = group(self.target.delayable().job_nothing(), self.target.delayable().job_nothing()).delay()
        self.assertEqual([found["job_record"] for found in trap.enqueued_jobs], [job, direct, *graph])
        self.assertEqual(self.states(job | direct | graph), ["pending"] * 4)

    def test_no_worker_is_woken(self):
        with patch.object(self.env.registry["queue.job"], "_wake_workers_at_commit") as wake:
            with trap_jobs(self.env):
                self.target.with_delay().job_nothing()
            self.assertFalse(wake.called)
            self.target.with_delay().job_nothing()
            self.assertTrue(wake.called)

    def test_only_jobs_of_the_block_are_trapped_and_a_returned_one_is_none(self):
        self.target.with_delay(identity_key="k").job_nothing()
        with trap_jobs(self.env) as trap:
            self.target.with_delay(identity_key="k").job_nothing()
        self.target.with_delay().job_nothing()
        trap.assert_jobs_count(0)

    def test_a_job_of_any_user_is_trapped(self):
        user = self.env.ref("base.user_admin")
        with trap_jobs(self.env) as trap:
            self.target.with_user(user).with_delay().job_nothing()
        trap.assert_jobs_count(1)

    def test_assert_jobs_count(self):
        with trap_jobs(self.env) as trap:
            trap.assert_jobs_count(0)
            self.target.with_delay().job_nothing()
            self.target.with_delay().job_echo(1)
            self.env["res.partner"].with_delay().job_echo(1)
        trap.assert_jobs_count(3)
        trap.assert_jobs_count(2, model="test.job.target")
        trap.assert_jobs_count(2, method="job_echo")
        trap.assert_jobs_count(1, model="test.job.target", method="job_echo")
        trap.assert_jobs_count(0, method="other")

    def test_the_failure_of_assert_jobs_count_tells_what_was_trapped(self):
        with trap_jobs(self.env) as trap:
            for _time in range(2):
                self.target.with_delay(channel="mail").job_echo("x")
        message = self.message(trap.assert_jobs_count, 1, method="job_echo")
        self.assertIn("expected 1 job of any model.job_echo(), trapped 2", message)
        self.assertIn(f"test.job.target({self.target.id}).job_echo('x')", message)
        self.assertIn("channel='mail'", message)
        self.assertIn("(2 times)", message)

    def test_assert_enqueued_job_returns_the_match(self):
        with trap_jobs(self.env) as trap:
            self.target.with_delay().job_echo(1)
            job = self.target.with_delay(channel="mail", eta=60).job_echo(2, key="v")
        match = trap.assert_enqueued_job("test.job.target", "job_echo", args=[2], kwargs={"key": "v"})
        self.assertEqual(match["job_record"], job)
        for filters in (
            {"args": (2,)},
            {"kwargs": {"key": "v"}},
            {"channel": "mail", "record_ids": self.target.ids},
            {"eta": 60},
            {"eta": timedelta(minutes=1)},
            {"eta": job.eta},
        ):
            found = trap.assert_enqueued_job("test.job.target", "job_echo", **filters)
            self.assertEqual(found["job_record"], job, filters)

    def test_assert_enqueued_job_compares_every_option(self):
        with trap_jobs(self.env) as trap:
            self.target.with_delay().job_echo(1)
        for filters in (
            {"args": ()},
            {"kwargs": {"a": 1}},
            {"priority": 11},
            {"channel": "mail"},
            {"eta": 60},
            {"max_retries": 1},
            {"description": "x"},
            {"identity_key": "k"},
            {"timeout": 1},
            {"record_ids": []},
        ):
            with self.subTest(filters), self.assertRaises(AssertionError):
                trap.assert_enqueued_job("test.job.target", "job_echo", **filters)
        trap.assert_enqueued_job("test.job.target", "job_echo", eta=None, identity_key=None, priority=10, timeout=0)

    def test_an_unknown_filter_is_a_type_error(self):
        with trap_jobs(self.env) as trap, self.assertRaisesRegex(TypeError, "prio"):
            trap.assert_enqueued_job("test.job.target", "job_echo", prio=3)

    def test_the_failure_of_assert_enqueued_job_tells_expected_trapped_and_closest_match(self):
        with trap_jobs(self.env) as trap:
            self.target.with_delay().job_nothing()
            self.target.with_delay(channel="mail").job_echo(1)
        message = self.message(
            trap.assert_enqueued_job, "test.job.target", "job_echo", args=(2,), channel="mail", priority=1
        )
        self.assertIn("expected a job test.job.target.job_echo(2) [channel='mail', priority=1]", message)
        self.assertIn("trapped 2 jobs:", message)
        self.assertIn(f"test.job.target({self.target.id}).job_nothing()", message)
        closest = message[message.index("closest:") :]
        self.assertIn("job_echo(1)", closest)
        self.assertIn("args: expected (2,), was (1,)", closest)
        self.assertIn("priority: expected 1, was 10", closest)
        self.assertNotIn("channel: expected", closest)

    def test_the_failure_says_if_nothing_was_trapped(self):
        with trap_jobs(self.env) as trap:
            pass
        self.assertIn("no job was trapped", self.message(trap.assert_enqueued_job, "res.partner", "x"))
        self.assertIn("no job was trapped", self.message(trap.assert_jobs_count, 1))

    # --- perform_enqueued_jobs ---------------------------------------------------------------------------------------

    def test_perform_enqueued_jobs_runs_in_dependency_order(self):
        seen = []

        def job_see(records, name):
            seen.append(name)

        with (
            patch.object(self.env.registry["test.job.target"], "job_see", job_see, create=True),
            trap_jobs(self.env) as trap,
        ):
            a, b, c, d = (self.target.delayable(priority=-index).job_see(name) for index, name in enumerate("abcd"))
            jobs = chain(group(d, c), b, a).delay()
            trap.perform_enqueued_jobs()
        self.assertEqual((set(seen[:2]), seen[2:]), ({"c", "d"}, ["b", "a"]))
        self.assertEqual(self.states(jobs), ["done"] * 4)

    def test_perform_enqueued_jobs_lets_errors_through(self):
        with trap_jobs(self.env) as trap:
            self.target.with_delay().job_fail("value")
            with self.assertRaisesRegex(ValueError, "a value error"):
                trap.perform_enqueued_jobs()

    def test_perform_enqueued_jobs_can_keep_errors_in_the_jobs_and_go_on(self):
        with trap_jobs(self.env) as trap:
            call = self.target.delayable(max_retries=1).job_fail("value")
            jobs = call.on_error(self.target.delayable().job_nothing()).delay()
            single = self.target.with_delay().job_nothing()
            for _try in range(2):
                trap.perform_enqueued_jobs(raise_errors=False)
        self.assertEqual((self.states(jobs), self.state(single)), (["failed", "done"], "done"))

    def test_jobs_that_jobs_enqueue_are_run_by_the_next_call(self):
        with trap_jobs(self.env) as trap:
            self.target.with_delay().job_enqueue("nested")
            trap.perform_enqueued_jobs()
            trap.assert_jobs_count(2)
            nested = trap.assert_enqueued_job("test.job.target", "job_ledger", args=("nested",))["job_record"]
            self.assertEqual(self.state(nested), "pending")
            trap.perform_enqueued_jobs()
            self.assertEqual(self.state(nested), "done")

    def test_perform_jobs_of_the_mixin(self):
        jobs = chain(self.target.delayable().job_nothing(), self.target.delayable().job_nothing()).delay()
        self.perform_jobs(jobs)
        self.assertEqual(self.states(jobs), ["done", "done"])


class TestOtherHelpers(JobMixin, JobCase):
    """Section 6: ``external_env``, ``assert_dt_between``, ``now_with_slack``."""

    def test_external_env_is_a_session_of_its_own_that_commits(self):
        with external_env(self.env) as (cr, env):
            self.assertIs(env.cr, cr)
            self.assertNotEqual(cr._cnx.get_backend_pid(), self.cr._cnx.get_backend_pid())
            self.assertFalse(
                env["test.job.target"].browse(self.target.id).exists(), "it sees what the test has not committed"
            )
            record = env["test.job.target"].create({"name": "external"})
        with external_env(self.env) as (_cr, env):
            found = env["test.job.target"].browse(record.id)
            self.assertEqual(found.name, "external")
            found.unlink()

    def test_external_env_rolls_back_what_raises(self):
        with self.assertRaises(ZeroDivisionError), external_env(self.env) as (cr, env):
            record = env["test.job.target"].create({"name": "external"})
            env.flush_all()
            raise ZeroDivisionError
        self.assertTrue(cr.closed)
        with external_env(self.env) as (_cr, env):
            self.assertFalse(env["test.job.target"].browse(record.id).exists())

    def test_external_env_runs_as_the_given_user(self):
        uid = self.env.ref("base.user_admin").id
        with self.external_env(uid=uid) as (_cr, env):
            self.assertEqual((env.uid, env.su), (uid, False))

    def test_assert_dt_between(self):
        now = datetime(2030, 1, 1)
        second = timedelta(seconds=1)
        assert_dt_between(self, now, now, now)
        for value in (now - second, now + 2 * second, False, None):
            with self.assertRaisesRegex(AssertionError, "expected a moment between 2030-01-01"):
                assert_dt_between(self, value, now, now + second)

    def test_now_with_slack(self):
        lower, upper = now_with_slack(seconds=10)
        self.assertEqual(upper - lower, timedelta(seconds=20))
        self.assert_about_now(lower + timedelta(seconds=10))
        with self.assertRaises(AssertionError):
            self.assert_about_now(lower - timedelta(seconds=60))
