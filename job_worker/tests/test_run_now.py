import contextlib
import os
from datetime import timedelta
from unittest.mock import patch

from odoo.exceptions import UserError

from .case import JobCase
from .common import assert_dt_between, now_with_slack
from odoo.addons.job_worker.delay import chain, group
from odoo.addons.job_worker.exception import RetryableJobError


class TestRunNow(JobCase):
    """Section 2 and 3: ``run_now()``."""

    def test_success_is_done_with_the_result(self):
        job = self.target.with_delay().job_succeed({"answer": 42})
        job.run_now()
        self.assertEqual((job.state, job.result, job.attempts), ("done", {"answer": 42}, 0))
        lower, upper = now_with_slack()
        assert_dt_between(self, job.started_at, lower, upper)
        assert_dt_between(self, job.completed_at, lower, upper)

    def test_the_duration_is_that_of_the_job(self):
        self.cr.execute("SELECT pg_sleep(0.3)")  # the transaction is older than the job
        job = self.target.with_delay().job_nothing()
        job.run_now()
        self.assertLess(job.duration, 0.3)

    def test_only_a_pending_job_can_be_run(self):
        job = self.target.with_delay().job_nothing()
        job.run_now()
        with self.assertRaisesRegex(UserError, "done"):
            job.run_now()
        self.assertEqual(job.state, "done")

    def test_what_is_not_retryable_is_raised_and_the_job_follows_the_same_rules_as_in_a_worker(self):
        job = self.target.with_delay(max_retries=1).job_ledger_then_fail("run_now")
        for state, attempts in (("pending", 1), ("failed", 2)):
            with contextlib.suppress(ValueError):
                job.run_now()
                self.fail("the error was swallowed")
            self.assertEqual((job.state, job.attempts), (state, attempts))
            self.assertIn("a value error", job.exc_info)
        self.assertFalse(job.scheduled_at)
        self.assertTrue(job.completed_at)
        self.assertEqual(len(job.attempt_ids), 2)
        self.assertFalse(self.env["test.job.ledger"].search_count([("key", "=", "run_now")]), "its writes are undone")

    def test_a_retryable_error_is_not_raised_and_the_job_waits_as_long_as_it_asked_for(self):
        job = self.target.with_delay().job_fail("retry_in_7")
        job.run_now()
        self.assertEqual((job.state, job.attempts), ("pending", 1))
        lower, upper = now_with_slack()
        assert_dt_between(self, job.scheduled_at, lower + timedelta(seconds=7), upper + timedelta(seconds=7))

    def test_a_retryable_error_is_raised_once_the_retries_are_used_up(self):
        job = self.target.with_delay(max_retries=1).job_fail("retry_now")
        job.run_now()
        with contextlib.suppress(RetryableJobError):
            job.run_now()
            self.fail("the error was swallowed")
        self.assertEqual((job.state, job.attempts), ("failed", 2))

    def test_a_failure_for_good_decides_the_jobs_after_it(self):
        call = self.target.delayable(max_retries=1).job_fail()
        jobs = (
            call.on_done(self.target.delayable().job_nothing()).on_error(self.target.delayable().job_nothing()).delay()
        )
        for _try in range(2):
            try:
                jobs[0].run_now()
            except ValueError:
                continue
        self.assertEqual(self.states(jobs), ["failed", "failed", "pending"])

    def test_several_jobs_run_one_after_the_other(self):
        jobs = chain(*(self.target.delayable().job_succeed(number) for number in range(3))).delay()
        jobs.run_now()
        self.assertEqual(self.states(jobs), ["done"] * 3)

    def test_a_job_that_cancels_itself_ends_cancelled(self):
        job = self.target.with_delay().job_cancel_itself()

        def cancel(records):
            self.env["queue.job"].browse(job.id).button_cancelled()

        with patch.object(self.env.registry["test.job.target"], "job_cancel_itself", cancel, create=True):
            job.run_now()
        self.assertEqual(self.state(job), "cancelled")


class TestNoDelay(JobCase):
    """Section 1.4: without a worker."""

    def setUp(self):
        super().setUp()
        self.sync = self.target.with_context(queue_job__no_delay=True)

    def test_with_the_context_key_the_job_is_stored_then_run_at_once(self):
        job = self.sync.with_delay().job_succeed("here")
        self.assertEqual((job.state, job.result), ("done", "here"))

    def test_with_the_environment_variable_too(self):
        with patch.dict(os.environ, {"QUEUE_JOB__NO_DELAY": "1"}):
            job = self.target.with_delay(eta=3600).job_succeed("here")
            self.assertEqual((job.state, job.result), ("done", "here"))
        with patch.dict(os.environ, {"QUEUE_JOB__NO_DELAY": "0"}):
            self.assertEqual(self.target.with_delay().job_succeed().state, "pending")

    def test_the_direct_form_too(self):
        job = (
            self.env["queue.job"]
            .with_context(queue_job__no_delay=True)
            .enqueue("test.job.target", "job_succeed", self.target.ids)
        )
        self.assertEqual(job.state, "done")

    def test_in_the_callers_transaction(self):
        seen = []
        with patch.object(
            self.env.registry["test.job.target"], "job_look", lambda records: seen.append(records.env.cr), create=True
        ):
            self.sync.with_delay().job_look()
        self.assertEqual(seen, [self.cr])

    def test_a_graph_in_dependency_order(self):
        seen = []

        def job_see(records, name):
            seen.append(name)

        with patch.object(self.env.registry["test.job.target"], "job_see", job_see, create=True):
            a, b, c, d = (self.sync.delayable(priority=-index).job_see(name) for index, name in enumerate("abcd"))
            jobs = chain(a, group(b, c), d).on_error(self.sync.delayable().job_see("error")).delay()
        self.assertEqual((seen[0], set(seen[1:3]), seen[3:]), ("a", {"b", "c"}, ["d"]))
        self.assertEqual(sorted(self.states(jobs)), ["cancelled"] + ["done"] * 4)

    def test_an_error_that_is_not_retryable_is_raised_to_the_caller(self):
        with self.assertRaises(ValueError):
            self.sync.with_delay().job_fail()

    def test_a_retryable_error_leaves_the_job_and_what_follows_for_later(self):
        jobs = chain(self.sync.delayable().job_fail("retry_in_7"), self.sync.delayable().job_nothing()).delay()
        self.assertEqual(self.states(jobs), ["pending", "waiting"])

    def test_jobs_that_a_job_enqueues_run_at_once_as_well(self):
        job = self.sync.with_delay().job_enqueue("nested")
        self.assertEqual(self.env["queue.job"].browse(job.result).state, "done")

    def test_a_job_returned_for_its_identity_key_is_not_run(self):
        job = self.target.with_delay(identity_key="key").job_nothing()
        self.assertEqual(self.sync.with_delay(identity_key="key").job_nothing(), job)
        self.assertEqual(self.state(job), "pending")

    def test_a_job_that_waits_for_one_of_before_stays_waiting(self):
        job = self.target.with_delay(identity_key="key").job_nothing()
        jobs = chain(self.sync.delayable(identity_key="key").job_nothing(), self.sync.delayable().job_nothing()).delay()
        self.assertEqual((jobs[0], self.states(jobs)), (job, ["pending", "waiting"]))
