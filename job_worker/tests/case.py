"""What the tests of this addon share; other addons use :mod:`.common`."""

from types import SimpleNamespace

from odoo.tests import TransactionCase, tagged

from .. import attempts, graph
from ..lifecycle import move


@tagged("post_install", "-at_install", "job_worker")
class JobCase(TransactionCase):
    """Test class with a record to enqueue jobs on. Needs the addon ``test_job_worker``."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if "test.job.target" not in cls.env:
            cls.skipTest(cls, "the addon test_job_worker is not installed")
        cls.target = cls.env["test.job.target"].create({"name": "target"})

    def enqueue(self, method="job_succeed", *args, **options):
        """Store a job of the target's ``method``; ``options`` are the job's."""
        return getattr(self.target.with_delay(**options), method)(*args)

    def run_job(self, job):
        """Run a job as ``run_now()`` does, keep what it wrote, and return the error it let through."""
        try:
            job.run_now()
        except Exception as error:
            return error
        return None

    def start(self, job, worker_id="a worker"):
        """Claim a pending job, and return what a worker knows of the claim."""
        self.take(job, "claim", worker_id=worker_id)
        return SimpleNamespace(id=job.id, claim_seq=job.claim_seq, attempts=job.attempts, max_retries=job.max_retries)

    def take(self, job, transition, **params):
        """Take a job through a transition that its state allows."""
        self.assertEqual(move(self.cr, transition, job.ids, **params), job.ids, f"{transition} from {job.state}")
        job.env["queue.job"].invalidate_model()

    def in_state(self, state, **options):
        """A job that came to ``state`` on a legal way."""
        job = self.enqueue(**options)
        way = {
            "waiting": [("cancel", {}), ("requeue_waiting", {})],
            "pending": [],
            "started": [("claim", {"worker_id": "a worker"})],
            "done": [("set_done", {})],
            "failed": [("set_failed", {"exc_info": "set to failed"})],
            "cancelled": [("cancel", {})],
        }
        for transition, params in way[state]:
            self.take(job, transition, **params)
        return job

    def set_column(self, job, column, value):
        """Write a column of a job behind the ORM's back, as an accident or an administrator's SQL would."""
        self.cr.execute(f'UPDATE queue_job SET "{column}" = %s WHERE id = %s', (value, job.id))
        job.env["queue.job"].invalidate_model()

    def state(self, job):
        """The state of a job in the database."""
        job.invalidate_recordset(["state"])
        return job.state

    def states(self, jobs):
        return [self.state(job) for job in jobs]

    def work(self, job, error=None):
        """What a worker does with a pending job: claim it, end it, settle what follows.

        :param str error: it fails for good, with this error
        """
        self.assertEqual(move(self.cr, "claim", job.ids, worker_id="w"), job.ids, f"{job} is not pending")
        job.invalidate_recordset()
        if error:
            claim = SimpleNamespace(
                id=job.id, claim_seq=job.claim_seq, attempts=job.max_retries, max_retries=job.max_retries or 1
            )
            attempts.fail(self.cr, claim, error)
        else:
            move(self.cr, "finish", job.ids, claim_seqs=[job.claim_seq], result=None, duration=0)
        graph.settle_children(self.cr, job.ids)
        job.env.invalidate_all()
