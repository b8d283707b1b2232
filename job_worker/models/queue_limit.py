from odoo import api, fields, models

from ..lifecycle import wake_workers


class QueueLimit(models.Model):
    _name = "queue.limit"
    _description = "Channel Limit"
    _order = "name"

    name = fields.Char("Channel", required=True, help="Name of the channel, as in with_delay(channel=…).")
    limit = fields.Integer(
        required=True, default=1, aggregator=None, help="Jobs that may run at once, over all workers; 0 pauses the channel."
    )
    rate_limit = fields.Float(
        "Starts per Second",
        required=True,
        default=0,
        aggregator=None,
        help="Starts in any sliding second, over all workers; 0 means no limit, 0.5 one start every two seconds.",
    )

    _name_unique = models.Constraint("UNIQUE (name)", "There is a limit for this channel already.")
    _check_limit = models.Constraint('CHECK ("limit" >= 0)', "The limit of a channel can't be negative.")
    _check_rate_limit = models.Constraint("CHECK (rate_limit >= 0)", "The rate of a channel can't be negative.")

    def init(self):
        # The starts of throttled channels, written at every claim: apart from the record that people edit, so that the
        # two never conflict.
        self.env.cr.execute(
            "CREATE TABLE IF NOT EXISTS queue_limit_starts ("
            " limit_id integer PRIMARY KEY REFERENCES queue_limit ON DELETE CASCADE,"
            " starts timestamp[] NOT NULL) WITH (fillfactor = 50)"
        )

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
