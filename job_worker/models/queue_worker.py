from odoo import api, fields, models
from odoo.exceptions import AccessError

WORKER_STATES = [
    ("running", "Running"),
    ("paused", "Paused"),
    ("draining", "Draining"),
    ("dead", "Dead"),
]


class QueueWorker(models.Model):
    """One row for each worker process and database, kept alive by the process's heartbeat."""

    _name = "queue.worker"
    _description = "Worker Process"
    _order = "name"

    name = fields.Char(required=True, readonly=True, help="Host, process and start: the name in Worker of jobs.")
    hostname = fields.Char("Host", readonly=True)
    pid = fields.Integer("Process", readonly=True, aggregator=None)
    version = fields.Char(readonly=True)
    databases = fields.Char(readonly=True, help="Databases that the process serves.")
    slots = fields.Integer(readonly=True, help="Jobs it runs at once.")
    running_jobs = fields.Integer(readonly=True)
    memory = fields.Integer("Memory (MiB)", readonly=True)
    started_at = fields.Datetime("Started", readonly=True)
    last_heartbeat = fields.Datetime(readonly=True)
    state = fields.Selection(WORKER_STATES, required=True, readonly=True, default="running")
    pause_requested = fields.Boolean(readonly=True, help="Asked not to claim any more jobs.")
    job_ids = fields.Many2many("queue.job", compute="_compute_job_ids", string="Jobs Running Here")

    _name_unique = models.Constraint("UNIQUE (name)", "A worker of this name exists already.")

    def _compute_job_ids(self):
        started = self.env["queue.job"].search([("state", "=", "started"), ("worker_id", "in", self.mapped("name"))])
        for worker in self:
            worker.job_ids = started.filtered(lambda job, name=worker.name: job.worker_id == name)

    def button_drain(self):
        """Ask the workers not to claim jobs any more; running ones finish."""
        self._request_pause(True)

    def button_resume(self):
        """Let the workers claim jobs again."""
        self._request_pause(False)

    def _request_pause(self, pause):
        self.check_access("read")
        if not self.env.user.has_group("job_worker.group_queue_job_manager"):
            raise AccessError(self.env._("Only managers of background jobs may pause or resume workers."))
        self.sudo().write({"pause_requested": pause})

    @api.model
    def _count_alive(self):
        """Number of workers that gave a sign of life within the last minute."""
        self.env.cr.execute(
            "SELECT count(*) FROM queue_worker WHERE state != 'dead'"
            " AND last_heartbeat > (now() AT TIME ZONE 'UTC') - interval '60 seconds'"
        )
        return self.env.cr.fetchone()[0]
