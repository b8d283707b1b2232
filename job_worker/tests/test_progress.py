# pylint: disable=invalid-commit
# sessions of their own, which commit as workers and users do
import json
import math
import time
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

from odoo.exceptions import AccessError
from odoo.http import _request_stack
from odoo.service.model import call_kw
from odoo.tests import tagged

from .. import attempts, queries
from ..lifecycle import move
from ..models import queue_job_progress
from .case import JobCase
from .common import external_env


@tagged("post_install", "-at_install", "job_worker")
class TestProgress(JobCase):
    """Progress is for others to see, so jobs here are committed and run on sessions of their own."""

    def setUp(self):
        super().setUp()
        with external_env(self.env) as (_cr, env):
            job = env["res.partner"].with_delay(channel="test.progress").job_that_is_played()
            self.job_id, self.uuid = job.id, job.uuid
        self.addCleanup(self._remove_job)
        self.claim_job()

    def _remove_job(self):
        with external_env(self.env) as (cr, _env):
            cr.execute("DELETE FROM queue_job WHERE id = %s", (self.job_id,))

    def claim_job(self):
        with external_env(self.env) as (cr, _env):
            cr.execute("UPDATE queue_job SET state = 'pending' WHERE id = %s", (self.job_id,))
            self.assertTrue(move(cr, "claim", [self.job_id], worker_id="a worker"))
            cr.execute("SELECT claim_seq FROM queue_job WHERE id = %s", (self.job_id,))
            self.claim_seq = cr.fetchone()[0]

    @contextmanager
    def inside(self):
        """A session in which the job runs: ``(cr, queue.job)``."""
        with external_env(self.env) as (cr, env):
            yield cr, env(context={"job_uuid": self.uuid})["queue.job"]

    def seen(self):
        """What another session sees of the job's progress."""
        with external_env(self.env) as (_cr, env):
            job = env["queue.job"].browse(self.job_id)
            return (job.progress_done, job.progress_total, job.progress_message or None)

    def test_it_is_seen_while_the_job_has_committed_nothing(self):
        with self.inside() as (_cr, jobs):
            jobs.set_progress(3, total=12, message="S00042")
            self.assertEqual(self.seen(), (3, 12, "S00042"))
            with external_env(self.env) as (_other, env):
                self.assertEqual(env["queue.job"].browse(self.job_id).progress, 25)

    def test_the_job_can_still_finish_in_a_transaction_that_began_before(self):
        with self.inside() as (cr, jobs):
            jobs.browse(self.job_id).read(["state"])
            jobs.set_progress(1, total=2)
            jobs.set_progress(2, total=2)
            moved = move(cr, "finish", [self.job_id], claim_seqs=[self.claim_seq], result=None, duration=1)
            cr.commit()
            self.assertEqual(moved, [self.job_id])

    def test_a_tight_loop_writes_a_few_times_only_and_the_last_word_counts(self):
        with patch.object(queries, "write_progress", wraps=queries.write_progress) as writes:
            with self.inside() as (_cr, jobs):
                began = time.monotonic()
                for step in range(20_000):
                    jobs.set_progress(step)
                elapsed = time.monotonic() - began
            self.assertLessEqual(writes.call_count, 2 + 2 * elapsed)
        self.assertEqual(self.seen(), (19_999, 0, None))

    def test_the_last_word_of_an_attempt_that_fails_is_kept(self):
        with self.inside() as (_cr, jobs):
            jobs.set_progress(1, total=100)
            jobs.set_progress(57, total=100, message="here it broke")
        with external_env(self.env) as (cr, _env):
            claim = SimpleNamespace(id=self.job_id, claim_seq=self.claim_seq, attempts=5, max_retries=5)
            attempts.fail(cr, claim, ValueError("broken"))
        self.assertEqual(self.seen(), (57, 100, "here it broke"))

    def test_completion_is_written_at_once(self):
        with self.inside() as (_cr, jobs):
            jobs.set_progress(9, total=10)
            jobs.set_progress(10, total=10)
            self.assertEqual(self.seen(), (10, 10, None))

    def test_a_new_attempt_starts_from_nothing_and_the_old_one_is_not_heard_any_more(self):
        with self.inside() as (_cr, jobs):
            jobs.set_progress(80, total=100)
            self.claim_job()
            self.assertEqual(self.seen(), (0, 0, None))
            jobs.set_progress(100, total=100)
            self.assertEqual(self.seen(), (0, 0, None))

    def test_nothing_happens_outside_a_job(self):
        with external_env(self.env) as (_cr, env):
            env["queue.job"].set_progress(3, total=12)
            self.assertEqual(list(env["queue.job"].track_progress(["a", "b"])), ["a", "b"])
        self.assertEqual(self.seen(), (0, 0, None))

    def test_the_job_goes_on_when_progress_can_not_be_written(self):
        with external_env(self.env) as (blocker, _env), self.inside() as (cr, jobs):
            blocker.execute("LOCK TABLE queue_job_progress IN ACCESS EXCLUSIVE MODE")
            jobs.set_progress(1, total=2)
            cr.execute("SELECT 1")
            blocker.rollback()

    def test_what_can_not_be_stored_does_not_disturb_the_job(self):
        with self.inside() as (_cr, jobs):
            jobs.set_progress(1, message="\x00" + "x" * 10_000)
        self.assertIn("xxx", self.seen()[2])
        with self.inside() as (_cr, jobs):
            jobs.set_progress(1, message="Rechnung\udc81.pdf")
        self.assertEqual(self.seen(), (1, 0, "Rechnung?.pdf"))

    def test_a_number_that_is_none_does_not_get_to_the_web_client(self):
        for done, total in ((math.nan, 2), (1, math.nan), (math.inf, 1), (1, math.inf), (-math.inf, 1)):
            with self.subTest(done=done, total=total):
                with self.inside() as (_cr, jobs):
                    jobs.set_progress(done, total, "said")
                with external_env(self.env) as (_cr, env):
                    job = env["queue.job"].browse(self.job_id)
                    names = ["progress", "progress_done", "progress_total", "progress_message"]
                    (values,) = job.read(names)
                    json.dumps(values, allow_nan=False)
                    self.assertEqual(values["progress_message"], "said")
                    self.assertTrue(0 <= values["progress"] <= 100)

    def test_no_id_is_used_up_by_telling_it_again(self):
        with self.inside() as (cr, jobs), patch.object(queue_job_progress, "WRITE_INTERVAL_SECONDS", 0):
            jobs.set_progress(0)
            cr.execute("SELECT last_value FROM queue_job_progress_id_seq")
            used = cr.fetchone()
            for step in range(10):
                jobs.set_progress(step)
            cr.execute("SELECT last_value FROM queue_job_progress_id_seq")
            self.assertEqual(cr.fetchone(), used)
        self.assertEqual(self.seen(), (9, 0, None))

    def test_it_takes_no_connection_for_itself(self):
        with self.inside() as (cr, jobs):
            jobs.set_progress(0, total=50)
            sessions = self._sessions(cr)
            for step in range(50):
                jobs.env.cr.cache.clear()
                jobs.set_progress(step, total=50)
            self.assertLessEqual(self._sessions(cr), sessions + 1)

    @staticmethod
    def _sessions(cr):
        cr.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        return cr.fetchone()[0]

    def test_iterating_tells_how_far_it_came(self):
        seen = []
        with self.inside() as (_cr, jobs):
            for item in jobs.track_progress(["a", "b", "c"], message=lambda item: f"did {item}"):
                seen.append(item)
        self.assertEqual(seen, ["a", "b", "c"])
        self.assertEqual(self.seen(), (3, 3, "did c"))

    def test_a_web_request_can_not_pass_for_a_job(self):
        with self.inside() as (_cr, jobs):
            _request_stack.push(SimpleNamespace())
            try:
                jobs.set_progress(100, total=100)
            finally:
                _request_stack.pop()
        self.assertEqual(self.seen(), (0, 0, None))

    def test_nobody_can_report_over_rpc(self):
        for method in ("set_progress", "track_progress"):
            with self.assertRaises(AccessError):
                call_kw(self.env["queue.job"], method, [[]], {"done": 1})
        with self.assertRaises(AccessError):
            self.env["queue.job.progress"].with_user(self.env.ref("base.user_admin")).search([])
