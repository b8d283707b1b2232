from odoo import fields, models


class TestJobLedger(models.Model):
    """Where jobs write that they ran: counting its rows tells what got lost and what ran twice."""

    _name = "test.job.ledger"
    _description = "Ledger of Test Jobs"
    _log_access = False

    key = fields.Char(required=True, index=True)
    note = fields.Char()
    pid = fields.Integer()
    began_at = fields.Float(digits=False, help="Database clock at the job's first line, seconds since 1970.")
    ended_at = fields.Float(digits=False, help="Database clock at the job's last line, seconds since 1970.")
