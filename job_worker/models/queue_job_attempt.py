from odoo import fields, models

from .queue_job import JobMany2one

OUTCOMES = [
    ("failed", "Failed"),
    ("timeout", "Timed out"),
    ("died", "Worker died"),
    ("cancelled", "Cancelled"),
    ("given_back", "Given back"),
]


class QueueJobAttempt(models.Model):
    """An attempt that did not end in success; the one that did is told by the job itself.

    Of each job the first and the latest 50 are kept.
    """

    _name = "queue.job.attempt"
    _description = "Attempt of a Background Job"
    _order = "id desc"
    _log_access = False

    job_id = JobMany2one("queue.job", required=True, readonly=True, index=True, ondelete="cascade")
    number = fields.Integer(readonly=True, aggregator=None, help="Of the attempts of the job that did not succeed.")
    times = fields.Integer(
        "Attempts in a Row",
        readonly=True,
        aggregator=None,
        help="That ended for the same reason and are kept as one.",
    )
    started_at = fields.Datetime("Started", readonly=True)
    ended_at = fields.Datetime("Ended", readonly=True)
    worker_id = fields.Char(readonly=True)
    outcome = fields.Selection(OUTCOMES, required=True, readonly=True)
    counted = fields.Boolean(readonly=True, help="Counts as one of the job's tries.")
    error = fields.Text(readonly=True)

    _died_idx = models.Index("(job_id) WHERE outcome = 'died'")
