from odoo import api, fields, models

from .. import queries
from ..lifecycle import wake_workers


class QueueLimit(models.Model):
    _name = "queue.limit"
    _description = "Channel Limit"
    _order = "name"

    name = fields.Char("Channel", required=True, help="Name of the channel, as in with_delay(channel=…).")
    limit = fields.Integer(
        required=True,
        default=1,
        aggregator=None,
        help="Jobs that may run at once, over all workers; 0 pauses the channel.",
    )
    rate_limit = fields.Float(
        "Starts per Second",
        required=True,
        default=0,
        aggregator=None,
        help="Starts in any sliding second, over all workers; 0 means no limit, 0.5 one start every two seconds.",
    )

    limit_before_pause = fields.Integer(
        readonly=True, aggregator=None, help="Technical: what resuming the channel puts back."
    )

    _name_unique = models.Constraint("UNIQUE (name)", "There is a limit for this channel already.")
    _check_name = models.Constraint("CHECK (length(name) <= 200)", "The name of a channel is too long.")
    _check_limit = models.Constraint('CHECK ("limit" >= 0)', "The limit of a channel can't be negative.")
    # Beyond these bounds lie NaN, infinity, and windows longer than an interval can be.
    _check_rate_limit = models.Constraint(
        "CHECK (rate_limit = 0 OR rate_limit BETWEEN 0.00001 AND 1000000)",
        "The rate of a channel must be 0, for no limit, or between 0.00001 and 1,000,000 starts per second.",
    )

    def init(self):
        queries.prepare_limit_table(self.env.cr)

    @api.model_create_multi
    def create(self, vals_list):
        limits = super().create(vals_list)
        limits._apply_at_commit()
        return limits

    def write(self, vals):
        result = super().write(vals)
        self._apply_at_commit()
        return result

    def unlink(self):
        result = super().unlink()
        self._apply_at_commit()
        return result

    def _apply_at_commit(self):
        """Have the workers look again: there may be more, or less, to claim."""
        wake_workers(self.env.cr)
