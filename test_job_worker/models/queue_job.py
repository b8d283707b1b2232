from odoo import fields, models


class QueueJob(models.Model):
    """A field on jobs, as another addon would add one."""

    _inherit = "queue.job"

    test_tag = fields.Char("Tag of Tests", default="untagged")
