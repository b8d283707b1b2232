from odoo import models

from ..loading import hold_claims


class IrModuleModule(models.Model):
    _inherit = "ir.module.module"

    def write(self, vals):
        """Before a module counts as installed while the others are still to come, keep workers from claiming."""
        if "state" in vals:
            hold_claims(self.env)
        return super().write(vals)
