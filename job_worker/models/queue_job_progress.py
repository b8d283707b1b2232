"""How far a running job has come, seen by others while the job's transaction is still open."""

import logging
import math
import time

import psycopg2
from odoo import api, fields, models
from odoo.http import request
from odoo.sql_db import PoolError, db_connect

from .. import queries
from ..job import CANCELLED, FAILED, STARTED
from .job_serialization import storable
from .queue_job import BigInteger, JobMany2one

_logger = logging.getLogger(__name__)

WRITE_INTERVAL_SECONDS = 0.5
MAX_MESSAGE_CHARACTERS = 500
_CACHE_KEY = "job_worker.progress"


class QueueJobProgress(models.Model):
    """The progress of a job's latest attempt, apart from the job's row, which stays quiet while the job runs."""

    _name = "queue.job.progress"
    _description = "Progress of a Background Job"
    _log_access = False

    job_id = JobMany2one("queue.job", required=True, readonly=True, ondelete="cascade")
    claim_seq = BigInteger(readonly=True, aggregator=None, help="Technical: the claim of the attempt that wrote it.")
    done = fields.Float(readonly=True, aggregator=None)
    total = fields.Float(readonly=True, aggregator=None)
    message = fields.Char(readonly=True)
    updated_at = fields.Datetime(readonly=True)

    _job_unique = models.Constraint("UNIQUE (job_id)", "A job has one progress.")


class QueueJob(models.Model):
    _inherit = "queue.job"

    progress = fields.Float(
        compute="_compute_progress", aggregator=None, help="Percentage of the work that the running attempt has done."
    )
    progress_done = fields.Float("Steps Done", compute="_compute_progress", aggregator=None)
    progress_total = fields.Float("Steps in Total", compute="_compute_progress", aggregator=None)
    progress_message = fields.Char(compute="_compute_progress")
    progress_updated_at = fields.Datetime("Progress Reported", compute="_compute_progress")

    @api.depends("state", "claim_seq")
    def _compute_progress(self):
        reporting = self.filtered(lambda job: job.state in (STARTED, FAILED, CANCELLED))
        known = queries.progress_of(self.env.cr, reporting.ids) if reporting else {}
        for job in self:
            done, total, message, updated_at = known.get(job.id, (0, 0, False, False))
            # whatever a job said: JSON has neither NaN nor infinity
            done, total = (value if math.isfinite(value) else 0.0 for value in (done, total))
            job.progress = max(0.0, min(100.0 * done / total, 100.0)) if total else 0.0
            job.progress_done = done
            job.progress_total = total
            job.progress_message = message
            job.progress_updated_at = updated_at

    @api.private
    @api.model
    def set_progress(self, done, total=None, message=None):
        """Tell how far the job in which this is called has come.

        Others see it at once, while the job's transaction is still open: it is written on a connection of its own, at
        most twice a second; what falls in between costs microseconds, and the last word is written when the attempt
        ends. It does nothing outside a job, and never raises into one because it could not be written.

        ``self.env["queue.job"].set_progress(3, total=10, message="S00042")``

        :param float done: steps done so far
        :param float total: steps in total, if known
        :param str message: what the job is doing
        """
        job_uuid = self.env.context.get("job_uuid")
        if job_uuid and not request:  # whoever calls over HTTP may claim any context
            cache = self.env.cr.cache
            reporter = cache.get(_CACHE_KEY)
            if reporter is None or reporter.job_uuid != job_uuid:
                reporter = cache[_CACHE_KEY] = _Reporter(self.env.cr, job_uuid)
            reporter.report(done, total, message)

    @api.private
    @api.model
    def track_progress(self, items, total=None, message=None):
        """Iterate over ``items``, telling the progress after each.

        ``for order in self.env["queue.job"].track_progress(orders): order.export()``

        :param items: recordset or other iterable
        :param float total: number of items, if ``len()`` can't tell it
        :param message: what the job is doing: a string, or a function of the item just done
        :return: generator of the items
        """
        if total is None and hasattr(items, "__len__"):
            total = len(items)
        for done, item in enumerate(items, start=1):
            yield item
            self.set_progress(done, total, message(item) if callable(message) else message)


class _Reporter:
    """Writes the progress of one attempt, or of one transaction of it."""

    def __init__(self, cr, job_uuid):
        self.job_uuid = job_uuid
        self._cr = cr
        self._attempt = None
        self._next_write = 0.0
        self._unwritten = None
        self._complete = False

    def report(self, done, total, message):
        values = (float(done), float(total or 0), message)
        now = time.monotonic()
        complete = bool(total) and done >= total
        if now >= self._next_write or (complete and not self._complete):
            self._next_write = now + WRITE_INTERVAL_SECONDS
            self._complete = complete
            self._unwritten = None
            self._write(values)
        else:
            if self._unwritten is None:
                self._cr.postcommit.add(self._write_last)
                self._cr.prerollback.add(self._write_last)
            self._unwritten = values

    def _write_last(self):
        values, self._unwritten = self._unwritten, None
        if values:
            self._write(values)

    def _write(self, values):
        done, total, message = values
        try:
            # not the registry's cursor, which in tests shares the job's transaction
            with db_connect(self._cr.dbname).cursor() as cr:
                self._attempt = queries.write_progress(
                    cr,
                    self.job_uuid,
                    self._attempt,
                    done,
                    total,
                    storable(str(message)[:MAX_MESSAGE_CHARACTERS]) if message else None,
                )
        except (psycopg2.Error, PoolError) as error:
            _logger.info("the progress of job %s could not be written: %s", self.job_uuid, error)
