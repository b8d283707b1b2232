from odoo import api, fields, models
from odoo.exceptions import AccessError
from odoo.fields import Domain

from .. import queries

WORKER_STATES = [
    ("running", "Running"),
    ("paused", "Paused"),
    ("blocked", "Blocked"),
    ("trouble", "In Trouble"),
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
    stale_after = fields.Float(
        "Dead After (s)", readonly=True, aggregator=None, help="Without a heartbeat for so long, it is taken for dead."
    )
    state = fields.Selection(WORKER_STATES, required=True, readonly=True, default="running")
    reason = fields.Char("Why", readonly=True, help="Why it does not claim jobs, or what does not work, if so.")
    pause_requested = fields.Boolean(readonly=True, help="Asked not to claim any more jobs.")
    job_ids = fields.Many2many("queue.job", compute="_compute_job_ids", string="Jobs Running Here")
    is_alive = fields.Boolean("Alive", compute="_compute_is_alive", search="_search_is_alive")
    status = fields.Selection([*WORKER_STATES, ("pausing", "Pausing")], compute="_compute_status")

    _name_unique = models.Constraint("UNIQUE (name)", "A worker of this name exists already.")

    def _compute_job_ids(self):
        started = self.env["queue.job"].search([("state", "=", "started"), ("worker_id", "in", self.mapped("name"))])
        for worker in self:
            worker.job_ids = started.filtered(lambda job, name=worker.name: job.worker_id == name)

    @api.depends("state", "last_heartbeat", "stale_after")
    def _compute_is_alive(self):
        """The stored state can't tell: with no other worker left, nobody writes that one died."""
        self.flush_model()
        alive = set(queries.workers_alive(self.env.cr))
        for worker in self:
            worker.is_alive = worker.id in alive

    def _search_is_alive(self, operator, value):
        if operator != "in":
            return NotImplemented
        self.flush_model()
        alive = Domain("id", "in", queries.workers_alive(self.env.cr))
        return alive if True in value else ~alive

    @api.depends("is_alive", "state", "pause_requested")
    def _compute_status(self):
        for worker in self:
            if not worker.is_alive:
                worker.status = "dead"
            elif worker.pause_requested and worker.state == "running":
                worker.status = "pausing"
            else:
                worker.status = worker.state

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
        """Number of workers that are not silent for longer than they may be."""
        return len(queries.workers_alive(self.env.cr))
