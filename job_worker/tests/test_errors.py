import dataclasses
from contextlib import nullcontext
from datetime import timedelta
from unittest.mock import patch

from odoo.exceptions import MissingError, UserError
from odoo.tests import BaseCase, tagged
from odoo.tools import mute_logger

from .. import attempts, queries
from ..exception import FailedJobError, JobError, RetryableJobError, TimeoutJobError, WorkerDiedJobError
from ..lifecycle import after_failure
from ..models.job_serialization import ModelNotFoundError
from ..worker.attempt import CANCEL, SHUTDOWN, TIMEOUT, Attempt, Claim
from ..worker.executor import write_end
from .case import JobCase
from .common import JobMixin

LONG = 100 * 365 * 86400


@tagged("post_install", "-at_install")
class TestExceptions(BaseCase):
    def test_all_errors_of_jobs_are_job_errors(self):
        for error in (RetryableJobError, FailedJobError, TimeoutJobError, WorkerDiedJobError):
            self.assertTrue(issubclass(error, JobError), error)

    def test_retryable_job_error_takes_seconds_and_ignore_retry(self):
        plain, full = RetryableJobError("later"), RetryableJobError("later", seconds=7, ignore_retry=True)
        self.assertEqual((str(plain), plain.seconds, plain.ignore_retry), ("later", None, False))
        self.assertEqual((str(full), full.seconds, full.ignore_retry), ("later", 7, True))


class TestErrors(JobMixin, JobCase):
    """Spec 3, sentence by sentence, through ``run_now()``."""

    def fail_with(self, job, error):
        """End an attempt of a pending job as a worker does when it raised ``error``."""
        following = attempts.fail(self.cr, self.start(job), error, duration=1.5)
        job.env["queue.job"].invalidate_model()
        return following

    def assert_scheduled_in(self, job, seconds):
        self.cr.execute(
            "SELECT extract(epoch FROM scheduled_at - clock_timestamp() AT TIME ZONE 'UTC')::float"
            " FROM queue_job WHERE id = %s",
            (job.id,),
        )
        self.assertAlmostEqual(self.cr.fetchone()[0], seconds, delta=5)
        self.assertFalse(job.is_due)

    # --- any exception -----------------------------------------------------------------------------------------------

    def test_any_exception_rolls_back_what_the_job_wrote(self):
        job = self.enqueue("job_ledger_then_fail", "rolled back")
        self.assertIsInstance(self.run_job(job), ValueError)
        self.assertFalse(self.env["test.job.ledger"].search([("key", "=", "rolled back")]))

    def test_any_exception_leaves_its_traceback_and_counts_as_an_attempt(self):
        job = self.enqueue("job_fail", "value")
        self.run_job(job)
        self.assertEqual((job.state, job.attempts), ("pending", 1))
        self.assertIn("Traceback (most recent call last)", job.exc_info)
        self.assertIn("in job_fail", job.exc_info)
        self.assertTrue(job.exc_info.strip().endswith("ValueError: a value error"))

    def test_while_tries_are_left_the_job_waits_for_ten_seconds_doubled_each_time(self):
        job = self.enqueue("job_fail", max_retries=4)
        for attempt, seconds in enumerate((10, 20, 40, 80), start=1):
            self.run_job(job)
            self.assertEqual((job.state, job.attempts), ("pending", attempt))
            self.assert_scheduled_in(job, seconds)

    def test_the_wait_is_never_longer_than_an_hour(self):
        job = self.enqueue("job_fail", max_retries=0)
        self.set_column(job, "attempts", 30)
        self.run_job(job)
        self.assert_scheduled_in(job, 3600)

    def test_the_wait_is_never_longer_than_the_workers_maximum(self):
        job = self.enqueue(max_retries=0)
        self.set_column(job, "attempts", 30)
        attempts.fail(self.cr, self.start(job), ValueError(), max_backoff=100)
        job.invalidate_recordset()
        self.assert_scheduled_in(job, 100)

    def test_with_max_retries_0_a_job_never_fails(self):
        job = self.enqueue("job_fail", max_retries=0)
        self.set_column(job, "attempts", 1_000_000)
        self.run_job(job)
        self.assertEqual((job.state, job.attempts), ("pending", 1_000_001))

    def test_after_its_last_try_a_job_has_failed(self):
        job = self.enqueue("job_fail", max_retries=1)
        self.run_job(job)
        self.assertEqual(job.state, "pending")
        self.run_job(job)
        self.assertEqual((job.state, job.attempts), ("failed", 2))
        self.assertFalse(job.scheduled_at)
        self.assert_about_now(job.completed_at)
        self.assertIn("ValueError: a value error", job.exc_info)

    def test_a_job_that_succeeds_after_failures_keeps_their_count_and_forgets_their_error(self):
        job = self.enqueue("job_succeed", 7)
        self.fail_with(job, ValueError("first"))
        job.run_now()
        self.assertEqual((job.state, job.attempts, job.exc_info, job.result), ("done", 1, False, 7))

    def test_every_attempt_that_failed_is_kept(self):
        job = self.enqueue("job_fail", max_retries=1)
        self.run_job(job)
        self.run_job(job)
        self.assertEqual(job.attempt_ids.mapped("outcome"), ["failed", "failed"])
        self.assertTrue(all(job.attempt_ids.mapped("counted")))
        self.assertTrue(all("ValueError" in error for error in job.attempt_ids.mapped("error")))

    def test_an_error_that_no_database_can_hold_is_kept_as_far_as_possible(self):
        for text in ("a\x00b", "\ud800", "x" * 10_000_000):
            with self.subTest(ascii(text[:5])):
                job = self.enqueue()
                self.fail_with(job, ValueError(text))
                self.assertEqual(job.state, "pending")
                self.assertLessEqual(len(job.exc_info), attempts.MAX_ERROR_CHARACTERS + 1)

    def test_an_error_whose_text_raises_is_a_failure_like_any_other(self):
        class UnspeakableError(Exception):
            def __str__(self):
                raise ZeroDivisionError

        job = self.enqueue()
        self.fail_with(job, UnspeakableError())
        self.assertEqual((job.state, job.attempts), ("pending", 1))

    # --- RetryableJobError -------------------------------------------------------------------------------------------

    def test_retryable_without_seconds_backs_off(self):
        job = self.enqueue("job_fail", "retryable")
        self.assertIsNone(self.run_job(job))
        self.assertEqual((job.state, job.attempts), ("pending", 1))
        self.assert_scheduled_in(job, 10)

    def test_retryable_with_seconds_waits_for_those(self):
        job = self.enqueue("job_fail", "retry_in_7")
        self.run_job(job)
        self.assert_scheduled_in(job, 7)

    def test_retryable_with_0_seconds_is_tried_again_at_once(self):
        job = self.enqueue("job_fail", "retry_now")
        self.run_job(job)
        self.assertEqual((job.state, job.scheduled_at, job.is_due), ("pending", False, True))

    def test_retryable_counts_and_exhausts_the_job(self):
        job = self.enqueue("job_fail", "retry_now", max_retries=1)
        self.assertIsNone(self.run_job(job))
        self.assertIsInstance(self.run_job(job), RetryableJobError)
        self.assertEqual((job.state, job.attempts), ("failed", 2))

    def test_ignore_retry_leaves_attempts_alone_and_never_exhausts_the_job(self):
        job = self.enqueue("job_fail", "ignore_retry", max_retries=1)
        for _try in range(4):
            self.assertIsNone(self.run_job(job))
            self.assertEqual((job.state, job.attempts), ("pending", 0))
        self.assertFalse(any(job.attempt_ids.mapped("counted")))

    def test_any_delay_that_is_none_is_taken_for_no_wish(self):
        for seconds, delay in (
            ("soon", 10),
            (float("nan"), 10),
            (True, 10),
            ([], 10),
            (timedelta(minutes=1), 60),
            (-1, 0),
            (float("inf"), LONG),
            (10**30, LONG),
        ):
            with self.subTest(seconds):
                job = self.enqueue()
                following = self.fail_with(job, RetryableJobError("later", seconds=seconds))
                self.assertEqual((job.state, following.delay), ("pending", delay))

    def test_a_retryable_error_that_was_made_carelessly_is_retried(self):
        class CarelessError(RetryableJobError):
            def __init__(self):
                pass

        job = self.enqueue()
        self.fail_with(job, CarelessError())
        self.assertEqual((job.state, job.attempts), ("pending", 1))

    # --- the others --------------------------------------------------------------------------------------------------

    def test_failed_job_error_follows_the_normal_retry_logic(self):
        for kind in ("failed", "job", "user"):
            with self.subTest(kind):
                job = self.enqueue("job_fail", kind, max_retries=1)
                self.run_job(job)
                self.assertEqual((job.state, job.attempts), ("pending", 1))
                self.run_job(job)
                self.assertEqual((job.state, job.attempts), ("failed", 2))

    def test_timeouts_and_dead_workers_count_as_attempts(self):
        for error, outcome in ((TimeoutJobError("too long"), "timeout"), (WorkerDiedJobError("gone"), "died")):
            with self.subTest(outcome):
                job = self.enqueue(max_retries=1)
                attempts.fail(self.cr, self.start(job), error, outcome=outcome)
                job.invalidate_recordset()
                self.assertEqual((job.state, job.attempts), ("pending", 1))
                self.assertIn(type(error).__name__ + ": ", job.exc_info)
                attempts.fail(self.cr, self.start(job), error, outcome=outcome)
                job.invalidate_recordset()
                self.assertEqual((job.state, job.attempts), ("failed", 2))
                self.assertEqual(job.attempt_ids.mapped("outcome"), [outcome] * 2)

    @mute_logger("odoo.sql_db")
    def test_conflicts_of_the_database_are_not_the_jobs(self):
        for conflict in attempts.CONFLICTS:
            with self.subTest(conflict.__name__):
                job = self.enqueue(max_retries=1)
                with patch.object(self.env.registry["test.job.target"], "job_succeed", _raising(conflict)):
                    self.assertIsInstance(self.run_job(job), conflict)
                self.assertEqual((job.state, job.attempts, job.is_due), ("pending", 0, True))
                self.assertFalse(job.attempt_ids)

    def test_a_job_whose_method_is_missing_fails_like_any_other(self):
        job = self.enqueue("no_such_method", max_retries=1)
        self.assertIsInstance(self.run_job(job), AttributeError)
        self.assertEqual((job.state, job.attempts), ("pending", 1))

    def test_a_record_that_is_gone_is_told_as_not_found(self):
        gone = self.env["test.job.target"].create({"name": "gone"})
        job = (self.target | gone).with_delay(max_retries=1).job_succeed()
        gone.unlink()
        error = self.run_job(job)
        self.assertIsInstance(error, MissingError)
        self.assertIn("not found", job.exc_info)
        self.assertIn(str(gone.id), job.exc_info)
        self.assertEqual((job.state, job.attempts), ("pending", 1))

    def test_a_model_that_is_gone_is_told_as_not_found(self):
        job = self.enqueue(max_retries=1)
        self.cr.execute(
            """UPDATE queue_job SET payload = jsonb_set(payload, '{model}', '"no.such"') WHERE id = %s""", (job.id,)
        )
        job.invalidate_recordset()
        self.assertIsInstance(self.run_job(job), LookupError)
        self.assertIn("model 'no.such' not found", job.exc_info)

    # --- run_now() ---------------------------------------------------------------------------------------------------

    def test_run_now_raises_again_what_is_not_retryable(self):
        for kind, error in (("value", ValueError), ("user", UserError), ("failed", FailedJobError), ("job", JobError)):
            with self.subTest(kind):
                self.assertIsInstance(self.run_job(self.enqueue("job_fail", kind)), error)

    def test_run_now_decides_as_workers_do(self):
        for done_before, max_retries in ((0, 5), (4, 5), (5, 5), (0, 1), (1, 1), (9, 0)):
            with self.subTest(attempts=done_before, max_retries=max_retries):
                here = self.enqueue("job_fail", max_retries=max_retries)
                there = self.enqueue("job_fail", max_retries=max_retries)
                for job in (here, there):
                    self.set_column(job, "attempts", done_before)
                self.run_job(here)
                self.fail_with(there, ValueError("a value error"))
                decision = after_failure(done_before, max_retries)
                for job in (here, there):
                    self.assertEqual(job.state, "pending" if decision.transition == "retry" else "failed")
                    self.assertEqual(job.attempts, decision.attempts)

    def test_run_now_needs_a_pending_job(self):
        for state in ("waiting", "started", "done", "failed", "cancelled"):
            with self.subTest(state):
                job = self.in_state(state)
                self.assertIsInstance(self.run_job(job), UserError)
                self.assertEqual(job.state, state)

    # --- the history of attempts -------------------------------------------------------------------------------------

    def test_of_many_attempts_the_first_and_the_latest_fifty_are_kept_with_their_number(self):
        job = self.enqueue(max_retries=0)
        for number in range(1, 61):
            self.fail_with(job, f"ValueError: {number}")
        kept = job.attempt_ids.sorted("id")
        self.assertEqual(kept.mapped("error"), [f"ValueError: {number}" for number in (1, *range(11, 61))])
        self.assertEqual(kept.mapped("number"), [1, *range(11, 61)])

    def test_a_history_from_before_there_was_a_bound_is_cut(self):
        job, other = self.enqueue(max_retries=0), self.enqueue()
        for owner, count in ((job, 300), (other, 60)):
            self.cr.execute(
                "INSERT INTO queue_job_attempt (job_id, outcome, counted, ended_at, error)"
                " SELECT %s, 'failed', true, now(), n::text FROM generate_series(1, %s) s(n) ORDER BY s.n",
                (owner.id, count),
            )
        self.fail_with(job, "ValueError: now")
        kept = job.attempt_ids.sorted("id")
        self.assertEqual(kept.mapped("error"), ["1", *map(str, range(252, 301)), "ValueError: now"])
        self.assertEqual(kept[-1].number, 301)
        self.assertEqual(len(other.attempt_ids), 60)

    def test_from_the_tenth_in_a_row_an_uncounted_retry_waits_a_second(self):
        job = self.enqueue()
        at_once = RetryableJobError("not my turn", seconds=0, ignore_retry=True)

        def delays(count, error=at_once):
            return [self.fail_with(job, error).delay for _try in range(count)]

        self.assertEqual(delays(12), [0] * 9 + [1] * 3)
        self.assertEqual(delays(1, RetryableJobError("later", seconds=7, ignore_retry=True)), [7])
        delays(1, ValueError("counted"))
        self.assertEqual(delays(10), [0] * 9 + [1])
        self.assertEqual(set(delays(60)), {1}, "more than are kept")

    # --- attempts that are nobody's fault ----------------------------------------------------------------------------

    def test_an_attempt_that_was_given_back_is_not_counted(self):
        job = self.enqueue()
        self.assertTrue(attempts.give_back(self.cr, self.start(job), duration=1))
        job.invalidate_recordset()
        self.assertEqual((job.state, job.attempts, job.is_due, job.exc_info), ("pending", 0, True, False))
        self.assertEqual(job.attempt_ids.mapped("counted"), [False])

    def test_an_attempt_that_was_postponed_is_not_counted(self):
        job = self.enqueue()
        self.assertTrue(attempts.postpone(self.cr, self.start(job), "modules are changing", 30))
        job.invalidate_recordset()
        self.assertEqual((job.state, job.attempts, job.database_failures), ("pending", 0, 0))
        self.assert_scheduled_in(job, 30)

    def test_a_lost_connection_is_counted_apart(self):
        job = self.enqueue()
        attempts.postpone(self.cr, self.start(job), "the connection broke", 0, database_failure=True)
        job.invalidate_recordset()
        self.assertEqual((job.state, job.attempts, job.database_failures), ("pending", 0, 1))

    def test_an_attempt_that_was_asked_to_stop_ends_as_cancelled(self):
        job = self.enqueue()
        claim = self.start(job)
        job.button_cancelled()
        self.assertEqual((job.state, job.cancel_requested), ("started", True))
        self.assertTrue(attempts.stop(self.cr, claim, 2.0))
        job.invalidate_recordset()
        self.assertEqual((job.state, job.duration), ("cancelled", 2.0))
        self.assert_about_now(job.cancelled_at)

    def test_an_attempt_that_lost_its_job_changes_nothing(self):
        job = self.enqueue()
        lost = self.start(job)
        self.take(job, "give_back")
        self.start(job, "another worker")
        self.assertIsNone(attempts.fail(self.cr, lost, ValueError()))
        self.assertFalse(attempts.stop(self.cr, lost))
        self.assertFalse(attempts.give_back(self.cr, lost, duration=1))
        self.assertFalse(attempts.postpone(self.cr, lost, "late", 0))
        job.invalidate_recordset()
        self.assertEqual((job.state, job.worker_id, job.attempts), ("started", "another worker", 0))
        self.assertFalse(job.attempt_ids)


def _raising(error):
    def method(_self):
        raise error("made up")

    return method


class TestWorkersEnds(JobMixin, JobCase):
    """How a worker ends an attempt that did not succeed."""

    def now(self):
        self.cr.execute("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
        return self.cr.fetchone()[0]

    def end(self, job, error, *, reason=None, age=10.0, quiet=True):
        """Let a worker end an attempt of a pending job; ``age`` is that of the job, in seconds."""
        self.start(job)
        known = {"age": age, "user_id": job.user_id.id, "company_id": job.company_id.id}
        names = [field.name for field in dataclasses.fields(Claim)]
        stored = {name: job[name] if name in job._fields else False for name in names}
        attempt = Attempt(Claim(**{**stored, **known}))
        attempt.registry, attempt.modules = self.env.registry, queries.gate_state(self.cr)[0]
        attempt.reason = reason
        with mute_logger("odoo.addons.job_worker.worker") if quiet else nullcontext():
            ended = write_end(self.cr, attempt, error, attempt.duration, 3600)
        job.env["queue.job"].invalidate_model()
        return ended

    def test_an_exception_is_a_counted_attempt(self):
        job = self.enqueue(max_retries=1)
        self.assertFalse(self.end(job, ValueError("first")))
        self.assertEqual((job.state, job.attempts), ("pending", 1))
        self.assertTrue(self.end(job, ValueError("second")))
        self.assertEqual((job.state, job.attempts), ("failed", 2))

    def test_a_missing_model_is_not_counted_while_the_registry_may_be_behind(self):
        for model_of in ("the job", "an argument"):
            with self.subTest(model_of):
                job = self.enqueue(max_retries=1)
                for _try in range(3):
                    self.assertFalse(self.end(job, ModelNotFoundError(f"model of {model_of} not found")))
                self.assertEqual((job.state, job.attempts), ("pending", 0))
                self.assertIn("not found", job.exc_info)
                self.assertTrue(job.scheduled_at)

    def test_while_a_model_is_missing_the_waits_grow_and_the_history_has_one_row(self):
        job = self.enqueue()
        waits = []
        for _try in range(8):
            self.end(job, ModelNotFoundError("model 'gone.model' not found"))
            waits.append(round((job.scheduled_at - self.now()).total_seconds()))
        self.assertEqual(waits, [5, 10, 20, 40, 80, 160, 300, 300])
        self.assertEqual((len(job.attempt_ids), job.attempt_ids.number, job.attempt_ids.times), (1, 8, 8))
        self.end(job, ValueError("something else"))
        self.assertEqual(job.attempt_ids.sorted("id").mapped("number"), [8, 9])
        self.end(job, ModelNotFoundError("model 'gone.model' not found"))
        self.assertEqual(len(job.attempt_ids), 3)

    def test_the_log_has_one_line_for_a_model_that_is_missing(self):
        jobs = [self.enqueue() for _job in range(3)]
        with self.assertLogs("odoo.addons.job_worker.worker") as logs:
            for job in jobs:
                self.end(job, ModelNotFoundError(f"model 'missing.{jobs[0].id}' not found"), quiet=False)
        self.assertEqual(len([line for line in logs.output if f"missing.{jobs[0].id}" in line]), 1)

    def test_after_an_hour_a_missing_model_counts(self):
        job = self.enqueue(max_retries=1)
        self.end(job, ModelNotFoundError("model not found"), age=3601)
        self.assertEqual((job.state, job.attempts), ("pending", 1))

    def test_a_timeout_says_so_and_where_the_job_was(self):
        job = self.enqueue(timeout=1)
        self.end(job, ValueError("in the middle of it"), reason=TIMEOUT)
        self.assertEqual((job.state, job.attempts), ("pending", 1))
        self.assertIn("TimeoutJobError: ", job.exc_info)
        self.assertIn("in the middle of it", job.exc_info)
        self.assertEqual(job.attempt_ids.outcome, "timeout")

    def test_a_shutdown_gives_the_job_back_uncounted(self):
        job = self.enqueue(max_retries=1)
        self.assertFalse(self.end(job, ValueError(), reason=SHUTDOWN))
        self.assertEqual((job.state, job.attempts, job.is_due), ("pending", 0, True))

    def test_a_cancelled_attempt_ends_its_job(self):
        job = self.enqueue()
        self.assertTrue(self.end(job, ValueError(), reason=CANCEL))
        self.assertEqual(job.state, "cancelled")
