import json

from odoo import api, fields, models
from odoo.exceptions import ValidationError

from .. import home, queries
from ..delay import MAX_NAME_CHARACTERS
from ..job import (
    CANCELLED,
    DEFAULT_CHANNEL,
    DEFAULT_MAX_RETRIES,
    DEFAULT_PRIORITY,
    DONE,
    FAILED,
    STARTED,
    STATES,
)

DURATION_BUCKETS = [
    ("instant", "Under 1 s", 0, 1),
    ("fast", "1 to 10 s", 1, 10),
    ("moderate", "10 s to 1 min", 10, 60),
    ("slow", "1 to 5 min", 60, 300),
    ("very_slow", "Over 5 min", 300, None),
]
DISPLAY_CHARACTERS = 10_000
FUNC_STRING_IDS = 100


class BigInteger(fields.Integer):
    """Integer of 64 bits: claims are numbered for years."""

    _column_type = ("int8", "int8")


class _Widened:
    """Keeps a column of 64 bits where one was made of it, which the ORM would make one of 32 bits again."""

    def _convert_db_column(self, model, column):
        return None if column["udt_name"] == "int8" else super()._convert_db_column(model, column)


class JobId(_Widened, fields.Integer):
    """Id of a job, without a foreign key; see docs/operations.md for more than 2^31 of them."""


class JobMany2one(_Widened, fields.Many2one):
    """Reference to a job; see docs/operations.md for more than 2^31 of them."""


def _alias(name, **kwargs):
    """Field that reads, searches and, where the original may be written, writes another one."""
    return {"related": name, "store": False, **kwargs}


class QueueJob(models.Model):
    _name = "queue.job"
    _description = "Background Job"
    _order = "priority, scheduled_at NULLS FIRST, id"
    _rec_name = "name"

    # core
    uuid = fields.Char("UUID", readonly=True, required=True, copy=False)
    name = fields.Char("Description", readonly=True)
    state = fields.Selection(STATES, readonly=True, required=True, default="pending", group_expand=True)
    # What may be big is read only where it is asked for, not along with any other field.
    payload = fields.Json(
        readonly=True,
        prefetch=False,
        help="The call: model, method, record ids, arguments and the caller's environment.",
    )
    result = fields.Json("Stored Result", readonly=True, prefetch=False, help="What the method returned.")
    channel = fields.Char(required=True, default=DEFAULT_CHANNEL, help="Throttled by the channel's limits.")
    priority = fields.Integer(required=True, default=DEFAULT_PRIORITY, aggregator=None, help="Lower runs first.")
    identity_key = fields.Char(
        readonly=True, help="While a job with this key has not ended, enqueueing it again returns that job."
    )
    user_id = fields.Many2one("res.users", readonly=True, ondelete="set null", help="The job runs as this user.")
    company_id = fields.Many2one("res.company", readonly=True, ondelete="set null")

    # times
    scheduled_at = fields.Datetime("Not Before", help="The job does not start earlier.")
    started_at = fields.Datetime("Started", readonly=True)
    completed_at = fields.Datetime("Completed", readonly=True)
    cancelled_at = fields.Datetime("Cancelled", readonly=True)
    duration = fields.Float(
        "Duration (s)", readonly=True, aggregator="avg", help="Run time of the last attempt, in seconds."
    )
    heartbeat = fields.Datetime(
        compute="_compute_heartbeat", help="When the worker that runs the job last gave a sign of life."
    )

    # retry
    attempts = fields.Integer("Failed Attempts", readonly=True, default=0, aggregator=None)
    max_retries = fields.Integer(
        readonly=True,
        default=DEFAULT_MAX_RETRIES,
        aggregator=None,
        help="Retries after the first try; 0 means for ever.",
    )
    timeout = fields.Integer(
        "Timeout (s)", readonly=True, default=0, aggregator=None, help="Per attempt; 0 means none."
    )
    exc_info = fields.Text("Error", readonly=True, prefetch=False)
    worker_id = fields.Char(readonly=True, help="Process that runs the job, or ran it last.")
    attempt_ids = fields.One2many("queue.job.attempt", "job_id", "Earlier Attempts", readonly=True)

    # graph
    parent_id = JobMany2one("queue.job", readonly=True, index="btree_not_null", ondelete="set null")
    child_ids = fields.One2many("queue.job", "parent_id", "Children", readonly=True)
    graph_uuid = fields.Char("Graph", readonly=True, index="btree_not_null")
    dependency_job_ids = fields.Many2many(
        "queue.job", "queue_job_dependency_rel", "job_id", "dependency_id", "Waits For", readonly=True
    )
    pending_dependency_count = fields.Integer("Unfinished Dependencies", compute="_compute_pending_dependency_count")
    run_on_failure = fields.Boolean("On Error", readonly=True, help="Runs when a job before it fails.")

    # from the payload
    model_name = fields.Char("Model", readonly=True)
    method_name = fields.Char("Method", readonly=True)
    record_id = fields.Integer(
        "Record ID", readonly=True, aggregator=None, help="The record the job is about; of several, the first."
    )
    record_ids = fields.Json(compute="_compute_from_payload")
    func_string = fields.Char("Call", compute="_compute_from_payload")
    payload_display = fields.Text("Arguments", compute="_compute_payload_display")
    result_display = fields.Text("Result", compute="_compute_result_display")
    duration_bucket = fields.Selection(
        [bucket[:2] for bucket in DURATION_BUCKETS],
        compute="_compute_duration_bucket",
        search="_search_duration_bucket",
    )

    # names known from elsewhere
    date_created = fields.Datetime("Created", **_alias("create_date"))
    date_started = fields.Datetime("Started (alias)", **_alias("started_at"))
    date_done = fields.Datetime("Completed (alias)", **_alias("completed_at"))
    date_cancelled = fields.Datetime("Cancelled (alias)", **_alias("cancelled_at"))
    exec_time = fields.Float("Duration (alias)", **_alias("duration"))
    eta = fields.Datetime("Not Before (alias)", **_alias("scheduled_at", readonly=False))
    retry = fields.Integer("Failed Attempts (alias)", **_alias("attempts"))

    # the engine's own
    is_due = fields.Boolean(readonly=True, help="Technical: pending, and its schedule has come.")
    claim_seq = BigInteger(
        readonly=True,
        aggregator=None,
        help="Technical: number of the claim that owns the job, the fence of its attempt.",
    )
    cancel_requested = fields.Boolean(readonly=True, help="Technical: its worker was asked to stop it.")
    ended_by_id = JobId(readonly=True, aggregator=None, help="Technical: id of the parent that ended this job.")
    database_failures = fields.Integer(
        readonly=True, aggregator=None, help="Technical: attempts lost with a database connection, not counted."
    )
    worker_died_at = fields.Datetime(
        "Worker Died",
        readonly=True,
        help="Technical: its last attempt died with its worker, so the next one runs alone in a process.",
    )

    # Each partial index serves one question of the engine; see docs/architecture.md.
    _claim_idx = models.Index(
        "(channel, priority, (COALESCE(scheduled_at, '-infinity'::timestamp)), id) WHERE state = 'pending' AND is_due"
    )
    _due_idx = models.Index("(scheduled_at) WHERE state = 'pending' AND NOT is_due")
    _running_idx = models.Index("(channel, claim_seq) WHERE state = 'started'")
    _waiting_idx = models.Index("(state, id) WHERE state IN ('waiting', 'pending')")
    _ended_idx = models.Index(
        "(state, (COALESCE(completed_at, cancelled_at)))"
        " INCLUDE (completed_at, cancelled_at, channel, user_id, company_id)"
        " WHERE state IN ('done', 'failed', 'cancelled')"
    )
    _record_idx = models.Index("(model_name, record_id) WHERE record_id IS NOT NULL")
    _identity_idx = models.UniqueIndex(
        "(identity_key) WHERE identity_key IS NOT NULL AND state IN ('waiting', 'pending', 'started')",
        "A job with this identity key is active already.",
    )
    _check_completed = models.Constraint(
        "CHECK ((state IN ('done', 'failed')) = (completed_at IS NOT NULL))",
        "A job has a completion date exactly when it is done or failed.",
    )
    _check_cancelled = models.Constraint(
        "CHECK ((state = 'cancelled') = (cancelled_at IS NOT NULL))",
        "A job has a cancellation date exactly when it is cancelled.",
    )

    def init(self):
        queries.prepare_job_table(self.env.cr)
        home.begin(self.env.cr)

    @api.constrains("channel")
    def _check_channel(self):
        if any(not job.channel or len(job.channel) > MAX_NAME_CHARACTERS for job in self):
            raise ValidationError(self.env._("The name of a channel has 1 to %s characters.", MAX_NAME_CHARACTERS))

    @api.depends("payload")
    def _compute_from_payload(self):
        self.check_access("read")  # what follows is read past it
        known = queries.record_ids_of(self.env.cr, self._origin.ids)
        for job in self:
            ids = known.get(job._origin.id)
            # whatever a damaged payload holds, these are ids that can be looked up
            ids = [rid for rid in ids if type(rid) is int and 0 < rid < 2**31] if isinstance(ids, list) else []
            job.record_ids = ids
            more = f", … {len(ids):,} in all" if len(ids) > FUNC_STRING_IDS else ""
            shown = ", ".join(map(str, ids[:FUNC_STRING_IDS]))
            job.func_string = f"{job.model_name}.{job.method_name}([{shown}{more}])"

    @api.depends("payload")
    def _compute_payload_display(self):
        self._compute_json_display("payload", "payload_display")

    @api.depends("result")
    def _compute_result_display(self):
        self._compute_json_display("result", "result_display")

    def _compute_json_display(self, name, display):
        self.check_access("read")  # what follows is read past it
        known = queries.json_texts(self.env.cr, self._origin.ids, name, DISPLAY_CHARACTERS)
        for job in self:
            text, length = known.get(job._origin.id, ("", 0))
            job[display] = self._shortened(text, length) if length > len(text) else text and _pretty(json.loads(text))

    def _shortened(self, text, length):
        """The beginning of a long text.

        :param int length: of the whole, in characters
        """
        return self.env._("%(text)s… (%(size)s characters in all)", text=text, size=f"{length:,}")

    @api.depends("duration", "state")
    def _compute_duration_bucket(self):
        for job in self:
            job.duration_bucket = job.state in (DONE, FAILED, CANCELLED) and next(
                key for key, _label, _low, high in DURATION_BUCKETS if high is None or job.duration < high
            )

    def _search_duration_bucket(self, operator, value):
        if operator != "in":
            return NotImplemented
        ended = fields.Domain("state", "in", (DONE, FAILED, CANCELLED))
        domain = ~ended if False in value else fields.Domain.FALSE
        for key, _label, low, high in DURATION_BUCKETS:
            if key in value:
                upper = [("duration", "<", high)] if high is not None else []
                domain |= ended & fields.Domain([("duration", ">=", low), *upper])
        return domain

    @api.depends("state", "worker_id")
    def _compute_heartbeat(self):
        workers = self.env["queue.worker"].sudo().search([("name", "in", self.mapped("worker_id"))])
        beats = {worker.name: worker.last_heartbeat for worker in workers}
        for job in self:
            job.heartbeat = job.state == STARTED and beats.get(job.worker_id)

    @api.depends("parent_id.state", "dependency_job_ids.state")
    def _compute_pending_dependency_count(self):
        for job in self:
            parents = (job.parent_id | job.dependency_job_ids).sudo()
            job.pending_dependency_count = sum(parent.state != DONE for parent in parents)


def _pretty(value):
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
