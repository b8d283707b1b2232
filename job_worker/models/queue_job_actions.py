"""What people, and code in their name, do with jobs: buttons, ``run_now()``, and the guard of everything else."""

import logging
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import psycopg2
from odoo import api, models
from odoo.exceptions import AccessError, UserError

from .. import attempts, graph, queries
from ..call import perform
from ..exception import JobError, RetryableJobError
from ..job import CANCELLED, DONE, FAILED, PENDING, STARTED, WAITING
from ..lifecycle import move, wake_workers
from .job_serialization import dump_result

_logger = logging.getLogger(__name__)

RETENTION_PARAMETER = "job_worker.done_job_retention_days"
FAILED_RETENTION_PARAMETER = "job_worker.failed_job_retention_days"
DEFAULT_RETENTION_DAYS = 30
LONGEST_RETENTION_DAYS = 365_000  # PostgreSQL can't count back for ever
VACUUM_BATCH = 1000
IDS_WARNING_SHARE = 0.7
# When a job runs is its user's affair, before whose jobs that of who manages the queue.
MANAGERS_FIELDS = {"priority", "channel"}
EDITABLE_FIELDS = {*MANAGERS_FIELDS, "scheduled_at", "eta"}


class QueueJob(models.Model):
    _inherit = "queue.job"

    # --- the guard ----------------------------------------------------------------------------------------------------

    @api.model_create_multi
    def create(self, vals_list):  # pylint: disable=method-required-super
        """Jobs come from ``with_delay()`` and its kin only: a row by hand would be code run in somebody's name."""
        raise AccessError(self.env._("Background jobs can't be created by hand."))

    def write(self, vals):
        """Only what is harmless to change, and only while the job has not begun."""
        if refused := set(vals) - EDITABLE_FIELDS:
            raise AccessError(
                self.env._("These fields of a background job can't be changed: %s", ", ".join(sorted(refused)))
            )
        self.check_access("write")
        if MANAGERS_FIELDS & set(vals):
            self._check_may_manage()
        if any(job.state not in (WAITING, PENDING) for job in self):
            raise UserError(self.env._("Only waiting and pending jobs can be changed."))
        result = super().write(vals)
        self.flush_recordset()
        queries.refresh_due(self.env.cr, self.ids)
        wake_workers(self.env.cr)
        # while this transaction holds them, workers leave them waiting
        self._settle_at_commit(job.id for job in self if job.state == WAITING)
        self.invalidate_recordset(["is_due"])
        return result

    @api.ondelete(at_uninstall=False)
    def _unlink_except_unfinished(self):
        if any(job.state in (WAITING, PENDING, STARTED) for job in self):
            raise UserError(self.env._("Only jobs that have ended can be deleted; cancel the others first."))
        children = self.sudo().browse(queries.children_of(self.env.cr, self.ids))
        if any(job.state in (WAITING, PENDING, STARTED) for job in children):
            raise UserError(self.env._("Jobs that others wait for can't be deleted."))

    def _check_may_operate(self):
        """Whoever sees a job as a user or manager of the queue may operate it."""
        self.check_access("write")

    def _check_may_manage(self):
        """Only managers of the queue may let jobs overtake those of others."""
        if not self.env.su and not self.env.user.has_group("job_worker.group_queue_job_manager"):
            raise AccessError(
                self.env._("Only managers of background jobs may change their channel or priority, or put them first.")
            )

    # --- buttons ------------------------------------------------------------------------------------------------------

    def button_requeue(self):
        """Put ended jobs back to pending, and the jobs that ended only because of them back to waiting."""
        return self._operate(graph.requeue, self.env._("requeued"))

    def button_set_to_done(self):
        """Take the jobs for done, without running them."""
        return self._operate(lambda cr, ids: self._end_by_hand(cr, "set_done", ids), self.env._("set to done"))

    def button_set_to_failed(self):
        """Take the jobs for failed."""
        text = self.env._("Set to failed by %s", self.env.user.name)
        return self._operate(
            lambda cr, ids: self._end_by_hand(cr, "set_failed", ids, exc_info=text), self.env._("set to failed")
        )

    def button_cancelled(self):
        """Cancel the jobs; those that are running are asked to stop."""
        return self._operate(
            lambda cr, ids: self._end_by_hand(cr, "cancel", ids) + queries.request_cancel(cr, ids),
            self.env._("cancelled, or asked to stop"),
        )

    def button_run_next(self):
        """Let pending jobs be the next of their channel, whatever their schedule and priority; for managers."""
        self._check_may_manage()
        return self._operate(queries.put_first, self.env._("put first"))

    @staticmethod
    def _end_by_hand(cr, transition, ids, **params):
        ended = move(cr, transition, ids, **params)
        if ended:
            graph.redecide_children(cr, ended)
        return ended

    def _operate(self, action, done):
        """Run ``action(cr, ids)``, which returns the ids it applied to, and tell what was skipped, and why.

        :param str done: what the action did to a job, for the summary
        """
        self._check_may_operate()
        self.flush_recordset()
        changed = set(action(self.env.cr, self.ids))
        self._settle_at_commit(changed)
        self.env["queue.job"].invalidate_model()
        skipped = self.browse(job_id for job_id in self.ids if job_id not in changed)
        if len(self) == 1 and not skipped:
            return True
        message = self.env._("%(count)s jobs %(done)s.", count=len(changed), done=done)
        if skipped:
            message += " " + self.env._("Skipped: %s.", ", ".join(skipped._why_skipped()))
        return {
            "type": "ir.actions.client",
            "tag": "display_notification",
            "params": {
                "type": "success" if not skipped else "info" if changed else "warning",
                "message": message,
                "sticky": bool(skipped),
                "next": {"type": "ir.actions.act_window_close"},
            },
        }

    def _why_skipped(self):
        """What kept an action from these jobs, with their number, for each reason: their states, mostly."""
        labels = dict(self._fields["state"]._description_selection(self.env))
        keys = queries.active_jobs_by_identity(self.env.cr, [job.identity_key for job in self if job.identity_key])
        reasons = Counter(
            self.env._("whose identity key another job has")
            if keys.get(job.identity_key, job.id) != job.id
            else labels[job.state].lower()
            for job in self.exists()
        )
        return [f"{count} {reason}" for reason, count in reasons.most_common()]

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

    # --- running here and now -----------------------------------------------------------------------------------------

    @api.private
    def run_now(self):
        """Run pending jobs in this transaction, by the same rules as a worker.

        Success, retries and failures are written to the jobs. What is not retryable is raised again.

        :raise UserError: the job is not pending
        """
        self._settle_at_commit(self.ids)
        for job in self:
            job._run_now()

    def _run_now(self):
        cr = self.env.cr
        self.env.flush_all()
        if not move(cr, "run_now", self.ids):
            raise UserError(
                self.env._("Job %(id)s can't be run: it is %(state)s.", id=self.id, state=self.sudo().state)
            )
        self.invalidate_recordset()
        job = self.sudo()
        claim = SimpleNamespace(id=job.id, claim_seq=job.claim_seq, attempts=job.attempts, max_retries=job.max_retries)
        began = time.monotonic()
        savepoint = cr.savepoint()
        commits = _OwnCommits(job, claim, savepoint)
        try:
            with savepoint:
                default_env = self.env.transaction.default_env
                try:
                    result = dump_result(perform(cr, job.uuid, job.user_id.id, job.payload, self._no_delay_context()))
                    self.env.flush_all()
                finally:
                    self.env.transaction.default_env = default_env
        except attempts.CONFLICTS:
            # the caller's transaction is what conflicts: to be tried again from its beginning
            with commits.failed():
                attempts.give_back_unbegun(cr, [claim])
            self.env["queue.job"].invalidate_model()
            raise
        except Exception as error:
            with commits.failed():
                following = attempts.fail(cr, claim, error, duration=time.monotonic() - began)
                if following and following.transition != "retry":
                    graph.settle_children(cr, [self.id])
            self.env["queue.job"].invalidate_model()
            if not following or following.transition == "fail" or not isinstance(error, RetryableJobError):
                raise
            _logger.info("job %s is to be retried: %s", self.id, error)
            return
        commits.over = True
        duration = time.monotonic() - began
        if queries.lock_attempt(cr, claim.claim_seq, self.id):
            move(cr, "finish", self.ids, claim_seqs=[claim.claim_seq], result=result, duration=duration)
        else:  # it cancelled itself
            attempts.stop(cr, claim, duration)
        graph.settle_children(cr, self.ids)
        self.env["queue.job"].invalidate_model()

    def _is_pending(self):
        """Whether the job is pending by now, whatever the cache says."""
        self.invalidate_recordset(["state"])
        return self.state == PENDING

    # --- housekeeping -------------------------------------------------------------------------------------------------

    @api.autovacuum
    def _vacuum_ended_jobs(self):
        """Delete jobs that ended long ago, a batch in each transaction of the cron.

        What is still needed, or can't be deleted, is passed by: the next batch begins behind it.
        """
        days = self._retention_days()
        deleted, after = 0, None
        while days and (expired := queries.expired_jobs(self.env.cr, days, after, VACUUM_BATCH)):
            deleted += self._delete_expired([job_id for job_id, _ended, needed in expired if not needed])
            job_id, ended, _needed = expired[-1]
            after = ended, job_id
            if self.env.context.get("cron_id") and not self.env["ir.cron"]._commit_progress():
                return deleted, True
        return deleted, False

    def _retention_days(self):
        """For how many days jobs are kept, by state; not those that are kept for ever."""
        get_param = self.env["ir.config_parameter"].sudo().get_param
        done = str(get_param(RETENTION_PARAMETER, DEFAULT_RETENTION_DAYS)).strip()
        failed = str(get_param(FAILED_RETENTION_PARAMETER) or "").strip()
        for parameter, value in ((RETENTION_PARAMETER, done), (FAILED_RETENTION_PARAMETER, failed or done)):
            if not value.isdecimal():
                _logger.warning("%s is %r, not a number of days: no job is deleted", parameter, value)
                return {}
        done, failed_days = (min(int(value), LONGEST_RETENTION_DAYS) for value in (done, failed or done))
        days = {DONE: done, CANCELLED: done, FAILED: failed_days}
        if failed and not days[FAILED]:
            del days[FAILED]
        return days

    def _delete_expired(self, job_ids):
        """Delete jobs, but for those that something refuses to let go.

        :return: how many were deleted
        """
        if not job_ids:
            return 0
        try:
            with self.env.cr.savepoint(flush=False):
                return queries.delete_jobs(self.env.cr, job_ids)
        except psycopg2.OperationalError:
            raise
        except psycopg2.DatabaseError as error:
            if len(job_ids) == 1:
                _logger.info("job %s can't be deleted: %s", job_ids[0], error)
                return 0
            middle = len(job_ids) // 2
            return self._delete_expired(job_ids[:middle]) + self._delete_expired(job_ids[middle:])

    @api.model
    def _ids_running_out(self):
        """Tables that have used up most of their ids: ``{table: share}``."""
        return {table: share for table, share in queries.ids_used(self.env.cr).items() if share >= IDS_WARNING_SHARE}

    @api.autovacuum
    def _warn_of_ids_running_out(self):
        for table, share in self._ids_running_out().items():
            _logger.warning(
                "%d %% of the ids of %s are used up; docs/operations.md of job_worker tells how to widen its columns",
                100 * share,
                table,
            )


class _OwnCommits:
    """What becomes of a job that commits in the transaction of its caller: it stays claimed, and nobody else may take
    it for left behind while its caller's transaction goes on.

    :param job: ``queue.job``
    :param claim: has ``id`` and ``claim_seq``
    :param savepoint: of the job, which does not outlive a commit
    """

    def __init__(self, job, claim, savepoint):
        self._job = job
        self._claim = claim
        self._savepoint = savepoint
        self._committed = False
        self.over = False
        job.env.cr.postcommit.add(self._hold)

    def _hold(self):
        """Hold the job's row again, which the commit has let go."""
        if self.over:
            return
        cr = self._job.env.cr
        self._committed = self._savepoint.closed = True
        if not queries.lock_attempt(cr, self._claim.claim_seq, self._claim.id):
            raise JobError(f"job {self._claim.id} was stopped, or is run by somebody else")
        cr.precommit.add(partial(cr.postcommit.add, self._hold))
        self._job._settle_at_commit([self._claim.id])

    @contextmanager
    def failed(self):
        """Write the end of a job that failed: for good, where the caller can't take back that it began."""
        cr = self._job.env.cr
        self.over = True
        if self._committed:  # there is no savepoint to go back to
            cr.rollback()
        yield
        if self._committed:
            cr.commit()  # pylint: disable=invalid-commit
