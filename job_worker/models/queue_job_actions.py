"""What people, and code in their name, do with jobs: buttons, ``run_now()``, and the guard of everything else."""

import logging
from types import SimpleNamespace

from odoo import api, models
from odoo.exceptions import AccessError, UserError

from .. import attempts, graph, queries
from ..call import perform
from ..exception import RetryableJobError
from ..job import PENDING, STARTED, WAITING
from ..lifecycle import move, wake_workers
from .job_serialization import dump_result

_logger = logging.getLogger(__name__)

RETENTION_PARAMETER = "job_worker.done_job_retention_days"
DEFAULT_RETENTION_DAYS = 30
VACUUM_BATCH = 1000
EDITABLE_FIELDS = {"priority", "channel", "scheduled_at", "eta"}


class QueueJob(models.Model):
    _inherit = "queue.job"

    # --- the guard -------------------------------------------------------------------------------------------------------

    @api.model_create_multi
    def create(self, vals_list):
        """Jobs come from ``with_delay()`` and its kin only: a row written by hand would be code run in somebody's name."""
        raise AccessError(self.env._("Background jobs can't be created by hand."))

    def write(self, vals):
        """Only what is harmless to change, and only while the job has not begun."""
        if refused := set(vals) - EDITABLE_FIELDS:
            raise AccessError(
                self.env._("These fields of a background job can't be changed: %s", ", ".join(sorted(refused)))
            )
        self.check_access("write")
        if any(job.state not in (WAITING, PENDING) for job in self):
            raise UserError(self.env._("Only waiting and pending jobs can be changed."))
        result = super().write(vals)
        self.flush_recordset()
        queries.refresh_due(self.env.cr, self.ids)
        wake_workers(self.env.cr)
        self.invalidate_recordset(["is_due"])
        return result

    @api.ondelete(at_uninstall=False)
    def _unlink_except_unfinished(self):
        if any(job.state in (WAITING, PENDING, STARTED) for job in self):
            raise UserError(self.env._("Only jobs that have ended can be deleted; cancel the others first."))

    def _check_may_operate(self):
        """Whoever sees a job as a user or manager of the queue may operate it."""
        self.check_access("write")

    # --- buttons ---------------------------------------------------------------------------------------------------------

    def button_requeue(self):
        """Put ended jobs back to pending, and the jobs that ended only because of them back to waiting."""
        return self._operate(graph.requeue)

    def button_set_to_done(self):
        """Take the jobs for done, without running them."""
        return self._operate(lambda cr, ids: self._end_by_hand(cr, "set_done", ids))

    def button_set_to_failed(self):
        """Take the jobs for failed."""
        text = self.env._("Set to failed by %s", self.env.user.name)
        return self._operate(lambda cr, ids: self._end_by_hand(cr, "set_failed", ids, exc_info=text))

    def button_cancelled(self):
        """Cancel the jobs; those that are running are asked to stop."""
        return self._operate(
            lambda cr, ids: self._end_by_hand(cr, "cancel", ids) + queries.request_cancel(cr, ids)
        )

    @staticmethod
    def _end_by_hand(cr, transition, ids, **params):
        ended = move(cr, transition, ids, **params)
        if ended:
            graph.settle_children(cr, ended)
        return ended

    def _operate(self, action):
        """Run ``action(cr, ids)``, which returns the ids it applied to, and tell what was skipped."""
        self._check_may_operate()
        self.flush_recordset()
        changed = action(self.env.cr, self.ids)
        self.env["queue.job"].invalidate_model()
        skipped = len(self) - len(set(changed))
        if not skipped:
            return True
        return {
            "type": "ir.actions.client",
            "tag": "display_notification",
            "params": {
                "type": "warning" if skipped == len(self) else "info",
                "message": self.env._(
                    "%(changed)s jobs changed, %(skipped)s skipped: their state does not allow it.",
                    changed=len(set(changed)),
                    skipped=skipped,
                ),
                "next": {"type": "ir.actions.client", "tag": "soft_reload"},
            },
        }

    def open_related_action(self):
        """Open the records the job is about: a form for one, a list for several.

        A model may override ``_job_related_action(job)`` to open something else.
        """
        self.ensure_one()
        self.check_access("read")
        if self.model_name not in self.env:
            raise UserError(self.env._("The model %s does not exist any more.", self.model_name))
        records = self.env[self.model_name].browse(self.record_ids or ()).exists()
        if not records:
            raise UserError(self.env._("There is no record to show."))
        return records._job_related_action(self)

    # --- running here and now --------------------------------------------------------------------------------------------

    @api.private
    def run_now(self):
        """Run pending jobs in this transaction, by the same rules as a worker.

        Success, retries and failures are written to the jobs. What is not retryable is raised again.

        :raise UserError: the job is not pending
        """
        for job in self:
            job._run_now()

    def _run_now(self):
        cr = self.env.cr
        self.env.flush_all()
        if not move(cr, "run_now", self.ids):
            raise UserError(self.env._("Job %(id)s can't be run: it is %(state)s.", id=self.id, state=self.sudo().state))
        self.invalidate_recordset()
        job = self.sudo()
        claim = SimpleNamespace(
            id=job.id, claim_seq=job.claim_seq, attempts=job.attempts, max_retries=job.max_retries
        )
        started = cr.now()
        try:
            with cr.savepoint():
                default_env = self.env.transaction.default_env
                try:
                    result = dump_result(perform(cr, job.uuid, job.user_id.id, job.payload))
                    self.env.flush_all()
                finally:
                    self.env.transaction.default_env = default_env
        except Exception as error:
            following = attempts.fail(cr, claim, error, duration=queries.seconds_since(cr, started))
            self.env["queue.job"].invalidate_model()
            if following.transition == "fail":
                graph.settle_children(cr, [self.id])
            if following.transition == "fail" or not isinstance(error, RetryableJobError):
                raise
            _logger.info("job %s is to be retried: %s", self.id, error)
            return
        queries.finish(cr, claim.claim_seq, self.id, result, queries.seconds_since(cr, started))
        graph.settle_children(cr, [self.id])
        self.env["queue.job"].invalidate_model()

    def _is_pending(self):
        """Whether the job is pending by now, whatever the cache says."""
        self.invalidate_recordset(["state"])
        return self.state == PENDING

    # --- housekeeping ----------------------------------------------------------------------------------------------------

    @api.autovacuum
    def _vacuum_ended_jobs(self):
        """Delete jobs that ended long ago, in batches of their own transaction."""
        days = self.env["ir.config_parameter"].sudo().get_param(RETENTION_PARAMETER, DEFAULT_RETENTION_DAYS)
        deleted = queries.delete_ended_jobs(self.env.cr, int(days), VACUUM_BATCH)
        return deleted, deleted == VACUUM_BATCH
