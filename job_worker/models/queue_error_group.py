"""Failed jobs by what failed: model, method, class of the exception and the place that raised it."""

from odoo import api, fields, models
from odoo.fields import Domain

from .. import queries
from ..job import FAILED
from .queue_job import BigInteger
from .queue_job_display import error_line


class QueueJob(models.Model):
    _inherit = "queue.job"

    error_class = fields.Char("Exception", readonly=True)
    error_place = fields.Char("Raised In", readonly=True, help="The last line of an addon that the exception passed.")
    error_group = BigInteger(readonly=True, aggregator=None, help="Technical: the same for failures of the same kind.")
    ended_at = fields.Datetime("Ended", compute="_compute_ended_at", search="_search_ended_at")

    _error_group_idx = models.Index(
        "(error_group) INCLUDE (completed_at, id, user_id, company_id) WHERE state = 'failed'"
    )

    def init(self):
        queries.prepare_ended_statistics(self.env.cr)
        return super().init()

    @api.depends("completed_at", "cancelled_at")
    def _compute_ended_at(self):
        for job in self:
            job.ended_at = job.completed_at or job.cancelled_at

    def _search_ended_at(self, operator, value):
        if operator not in ("<", "<=", ">", ">=") or not value:
            return NotImplemented
        return Domain.custom(to_sql=lambda _model, alias, _query: queries.ended_at(alias, operator, value))


class QueueErrorGroup(models.Model):
    """A group is known by its first job; its jobs are those this user may see."""

    _name = "queue.error.group"
    _description = "Kind of Failure"
    _auto = False
    _order = "last_seen desc, id"
    _rec_name = "error_class"

    model_name = fields.Char("Model", readonly=True)
    method_name = fields.Char("Method", readonly=True)
    error_class = fields.Char("Exception Class", readonly=True)
    error_name = fields.Char("Exception", compute="_compute_error_name")
    error_place = fields.Char("Raised In", readonly=True)
    jobs = fields.Integer("Failed Jobs", readonly=True)
    first_seen = fields.Datetime(readonly=True)
    last_seen = fields.Datetime(readonly=True)
    last_job_id = fields.Many2one("queue.job", "Latest Job", readonly=True)
    func_string = fields.Char("Call", compute="_compute_func_string")
    message = fields.Char("Latest Message", compute="_compute_message")

    @property
    def _table_query(self):
        return queries.error_groups(self.env["queue.job"]._search([]))

    @api.depends("error_class")
    def _compute_error_name(self):
        for group in self:
            group.error_name = (group.error_class or "").rpartition(".")[2]

    @api.depends("model_name", "method_name")
    def _compute_func_string(self):
        for group in self:
            group.func_string = f"{group.model_name}.{group.method_name}"

    @api.depends("last_job_id")
    def _compute_message(self):
        for group in self:
            line = error_line(group.last_job_id.exc_info) or ""
            group.message = line.removeprefix(group.error_class or "").removeprefix(":").strip()

    def button_requeue(self):
        """Requeue all failed jobs of the groups."""
        return self._jobs().button_requeue()

    def button_cancelled(self):
        """Cancel all failed jobs of the groups."""
        return self._jobs().button_cancelled()

    def open_jobs(self):
        """Action that lists the failed jobs of the groups."""
        return {
            "type": "ir.actions.act_window",
            "name": self.env._("Failed Jobs"),
            "res_model": "queue.job",
            "views": [(False, "list"), (False, "form")],
            "domain": list(self._domain()),
        }

    def _jobs(self):
        return self.env["queue.job"].search(self._domain())

    def _domain(self):
        """The groups' jobs, also after the job that gave a group its id was put back."""
        keys = self.env["queue.job"].search_fetch([("id", "in", self.ids)], ["error_group"]).mapped("error_group")
        return Domain("state", "=", FAILED) & Domain("error_group", "in", keys)
