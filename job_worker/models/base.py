from odoo import api, models

from ..delay import Delayable, DelayableRecordset


class Base(models.AbstractModel):
    _inherit = "base"

    @api.private
    def with_delay(self, **options):
        """Run a method of these records in the background.

        ``orders.with_delay(channel="export").export_csv(separator=";")`` stores one job, part of this transaction, and
        returns it.

        :param str channel: name of the channel that throttles the job, ``"root"`` by default
        :param int priority: lower runs first, 10 by default
        :param eta: not before: a datetime (naive means UTC), a timedelta or seconds from now
        :param scheduled_at: the same as ``eta``
        :param int max_retries: retries after the first try, 5 by default; 0 means for ever
        :param int timeout: seconds an attempt may take, 0 for no limit
        :param identity_key: string, or function of the delayable that returns one: while a job with the same key has
            not
            ended, no other is stored
        :param str description: stored as the job's ``name``
        :return: an object on which any method of the model can be called, which returns the ``queue.job``
        :rtype: ~odoo.addons.job_worker.delay.DelayableRecordset
        :raise ValueError: an unknown option or a value out of range
        :raise TypeError: a value of a wrong type, or an argument that can't be stored
        """
        return DelayableRecordset(self, **options)

    @api.private
    def delayable(self, **options):
        """Capture a call without storing it yet: to configure it, split it, or connect it to others.

        :param options: see :meth:`with_delay`
        :rtype: ~odoo.addons.job_worker.delay.Delayable
        """
        return Delayable(self, **options)

    @api.model
    def _job_prepare_context_before_enqueue_keys(self):
        """Context keys that a job, and a recordset among its arguments, takes along."""
        return ("lang", "tz", "allowed_company_ids", "active_test")

    def _job_store_values(self, job_vals):
        """Add values to the jobs of this model.

        :param dict job_vals: values the ``queue.job`` is going to be stored with
        :return: values of other fields of ``queue.job``
        :rtype: dict
        """
        return {}

    def _job_related_action(self, job):
        """Action that shows the records of a job.

        :param job: the ``queue.job``, whose records these are
        :return: an action, as a button returns it
        :rtype: dict
        """
        action = {"type": "ir.actions.act_window", "name": job.name, "res_model": self._name}
        if len(self) == 1:
            return {**action, "res_id": self.id, "views": [[False, "form"]], "view_mode": "form"}
        return {
            **action,
            "domain": [("id", "in", self.ids)],
            "views": [[False, "list"], [False, "form"]],
            "view_mode": "list,form",
        }
