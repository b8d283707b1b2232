"""A job as people read it: in sentences, durations and pictures instead of columns."""
# pylint: disable=prefer-env-translation
# it does not see that _ is self.env._ here

import json
from collections import defaultdict
from datetime import timedelta

from odoo import api, fields, models
from odoo.exceptions import AccessError, MissingError
from odoo.fields import Domain

from .. import home, queries
from ..job import DONE, OVERDUE_SECONDS, PENDING, STARTED
from .job_serialization import RECORDSET, TYPE_KEY

NAMED_RECORDS = 3
GRAPH_NODES = 2000
ARGUMENTS_SHOWN = 50
ARGUMENT_CHARACTERS = 1000
ARGUMENT_RECORDS = 20
ERROR_LINE_CHARACTERS = 500
TIMELINE_ERROR_CHARACTERS = 2000


class QueueJob(models.Model):
    _inherit = "queue.job"

    summary = fields.Char("In Plain Words", compute="_compute_summary")
    standing = fields.Char("Where It Stands", compute="_compute_standing")
    run_time = fields.Float(
        compute="_compute_run_time", aggregator=None, help="Seconds the running, or else the last, attempt took so far."
    )
    error_line = fields.Char("Reason", compute="_compute_error_line", help="The exception, without its traceback.")
    arguments_display = fields.Text("Arguments in Short", compute="_compute_arguments_display")
    timeline = fields.Json("Attempts", compute="_compute_timeline")
    has_graph = fields.Boolean(compute="_compute_has_graph")
    record_ref = fields.Char(
        "Record Reference",
        compute="_compute_record_ref",
        search="_search_record_ref",
        help="The record the job is about, as model,id; to search: sale.order,12 or just 12.",
    )
    is_overdue = fields.Boolean("Overdue", compute="_compute_is_overdue", search="_search_is_overdue")
    is_latest = fields.Boolean(
        "Latest",
        compute="_compute_is_latest",
        search="_search_is_latest",
        help="Among the latest 5,000 jobs of its state, whoever they belong to.",
    )

    # --- sentences -------------------------------------------------------------------------------------------------

    @api.depends("record_ids", "user_id")
    @api.depends_context("uid", "lang")
    def _compute_summary(self):
        _ = self.env._
        for job in self:
            values = {
                "call": _humanize(job.method_name),
                "records": job._records_in_words(),
                "user": job.user_id.sudo().name or _("a deleted user"),
            }
            job.summary = (
                _("%(call)s on %(records)s, as %(user)s", **values)
                if values["records"]
                else _("%(call)s, as %(user)s", **values)
            )

    def _records_in_words(self):
        """The job's records by name, as far as this user may know them."""
        _ = self.env._
        ids = self.record_ids or []
        if not ids:
            return ""
        if self.model_name in self.env:
            model = self.env["ir.model"]._get(self.model_name).sudo().name
            names = [_name_of(record) for record in self.env[self.model_name].browse(ids[:NAMED_RECORDS])]
        else:
            model, names = self.model_name, [f"#{record_id}" for record_id in ids[:NAMED_RECORDS]]
        names = ", ".join(names)
        if len(ids) > NAMED_RECORDS:
            return _("%(model)s %(names)s and %(more)s more", model=model, names=names, more=len(ids) - NAMED_RECORDS)
        return _("%(model)s %(names)s", model=model, names=names)

    @api.depends("state", "attempts", "max_retries", "scheduled_at", "duration", "cancel_requested")
    @api.depends_context("lang")
    def _compute_standing(self):
        for job in self:
            job.standing = getattr(job, f"_standing_{job.state}")()

    def _standing_waiting(self):
        count = self.pending_dependency_count
        if count == 1:
            return self.env._("Waits for one job to be done")
        return self.env._("Waits for %s jobs to be done", count)

    def _standing_pending(self):
        _ = self.env._
        wait = (self.scheduled_at - self._now()).total_seconds() if self.scheduled_at else 0
        if wait > 0 and self.attempts:
            return _(
                "%(attempt)s, next try in %(time)s",
                attempt=self._attempt_text(self.attempts + 1),
                time=self._in_words(wait),
            )
        if wait > 0:
            return _("Starts in %s", self._in_words(wait))
        limit = self.env["queue.limit"].sudo().search([("name", "=", self.channel)], limit=1)
        if limit and not limit.limit:
            return _("The channel %s is paused", self.channel)
        if home.is_held(self.env.cr):
            return _("Held, because this database was copied or moved: the dashboard asks which it is")
        if not queries.workers_alive(self.env.cr):
            return _("No worker has been seen in the last minute")
        if reason := queries.why_nobody_claims(self.env.cr):
            return _("No worker takes jobs: %s", reason)
        return _("Next in line in the channel %s", self.channel)

    def _standing_started(self):
        _ = self.env._
        values = {"attempt": self._attempt_text(self.attempts + 1), "time": self._in_words(self.run_time)}
        if self.cancel_requested:
            return _("%(attempt)s, running for %(time)s, asked to stop", **values)
        return _("%(attempt)s, running for %(time)s", **values)

    def _standing_done(self):
        _ = self.env._
        if not self.started_at:
            return _("Taken for done by hand")
        if self.attempts:
            return _(
                "Done after %(time)s, at attempt %(attempt)s",
                time=self._in_words(self.duration),
                attempt=self.attempts + 1,
            )
        return _("Done after %s", self._in_words(self.duration))

    def _standing_failed(self):
        _ = self.env._
        if self.ended_by_id:
            return _("Did not run, because job %s before it failed", self.ended_by_id)
        if self.attempts == 1:
            return _("Failed after one attempt")
        if self.attempts:
            return _("Failed after %s attempts", self.attempts)
        return _("Failed")

    def _standing_cancelled(self):
        if self.ended_by_id:
            return self.env._("Cancelled because of how job %s before it ended", self.ended_by_id)
        return self.env._("Cancelled")

    def _attempt_text(self, number):
        if self.max_retries:
            return self.env._("Attempt %(number)s of %(total)s", number=number, total=max(self.max_retries + 1, number))
        return self.env._("Attempt %s", number)

    def _in_words(self, seconds):
        """A duration as people say it."""
        _ = self.env._
        seconds = max(seconds or 0, 0)
        if seconds < 9.95:
            return _("%s s", f"{seconds:.1f}")
        seconds = round(seconds)
        if seconds < 60:
            return _("%s s", seconds)
        if seconds < 3600:
            return _("%(minutes)s min %(seconds)s s", minutes=seconds // 60, seconds=seconds % 60)
        if seconds < 86400:
            return _("%(hours)s h %(minutes)s min", hours=seconds // 3600, minutes=seconds // 60 % 60)
        return _("%(days)s d %(hours)s h", days=seconds // 86400, hours=seconds // 3600 % 24)

    def _now(self):
        """The database's clock, naive UTC, as of this transaction."""
        return self.env.cr.now()

    # --- parts -----------------------------------------------------------------------------------------------------

    @api.depends("state", "started_at", "duration")
    def _compute_run_time(self):
        for job in self:
            running = job.state == STARTED and job.started_at
            job.run_time = (job._now() - job.started_at).total_seconds() if running else job.duration

    @api.depends("exc_info")
    def _compute_error_line(self):
        for job in self:
            job.error_line = error_line(job.exc_info)

    @api.depends("payload")
    @api.depends_context("lang")
    def _compute_arguments_display(self):
        self.check_access("read")  # what follows is read past it
        lines = defaultdict(list)
        for job_id, name, text, length in queries.argument_texts(
            self.env.cr,
            self._origin.ids,
            ARGUMENTS_SHOWN + 1,
            ARGUMENT_CHARACTERS,
            {TYPE_KEY: RECORDSET},
            ARGUMENT_RECORDS + 1,
        ):
            value = self._shortened(text, length) if length > len(text) else _readable(json.loads(text))
            lines[job_id].append(f"{name} = {value}" if name else value)
        for job in self:
            shown = lines[job._origin.id]
            job.arguments_display = "\n".join(
                [*shown[:ARGUMENTS_SHOWN], *(["…"] if len(shown) > ARGUMENTS_SHOWN else [])]
            )

    @api.depends("attempt_ids", "state", "started_at", "completed_at", "worker_id")
    @api.depends_context("lang")
    def _compute_timeline(self):
        for job in self:
            entries, number = [], 0
            for attempt in job.attempt_ids.sorted("id"):
                # those of earlier versions have no number, and all of them are there
                first = max(attempt.number - attempt.times, number) + 1
                if first > number + 1:
                    entries.append(job._omitted_entry(number + 1, first - 1))
                number = max(attempt.number, first)
                entries.append(job._attempt_entry(attempt, first, number))
            if job.started_at and job.state in (STARTED, DONE):
                entries.append(
                    {
                        "number": _span(number + 1),
                        "outcome": job.state,
                        "label": dict(self._fields["state"]._description_selection(self.env))[job.state],
                        "started_at": fields.Datetime.to_string(job.started_at),
                        "time": self._in_words(job.run_time),
                        "worker": job.worker_id or "",
                        "reason": "",
                        "error": "",
                    }
                )
            job.timeline = entries[::-1]

    def _attempt_entry(self, attempt, first, last):
        spent = (attempt.ended_at - attempt.started_at).total_seconds() if attempt.started_at else 0
        error = attempt.error or ""
        return {
            "number": _span(first, last),
            "outcome": attempt.outcome,
            "label": dict(attempt._fields["outcome"]._description_selection(self.env))[attempt.outcome],
            "started_at": fields.Datetime.to_string(attempt.started_at) or "",
            "time": self._in_words(spent),
            "worker": attempt.worker_id or "",
            "reason": error_line(error) or "",
            "error": error if len(error) <= TIMELINE_ERROR_CHARACTERS else "…" + error[-TIMELINE_ERROR_CHARACTERS:],
        }

    def _omitted_entry(self, first, last):
        label = self.env._("Not kept")
        empty = dict.fromkeys(("started_at", "time", "worker", "reason", "error"), "")
        return {"number": _span(first, last), "outcome": "omitted", "label": label, **empty}

    @api.depends("parent_id", "child_ids", "dependency_job_ids", "graph_uuid")
    def _compute_has_graph(self):
        with_children = queries.jobs_with_children(self.env.cr, self.ids) if self.ids else set()
        for job in self:
            job.has_graph = bool(job.graph_uuid or job.sudo().parent_id or job.sudo().dependency_job_ids) or (
                job.id in with_children
            )

    # --- to search by ----------------------------------------------------------------------------------------------

    @api.depends("model_name", "record_id")
    def _compute_record_ref(self):
        for job in self:
            job.record_ref = f"{job.model_name},{job.record_id}" if job.record_id else False

    def _search_record_ref(self, operator, value):
        if operator not in ("=", "ilike", "in"):
            return NotImplemented
        domain = Domain.FALSE
        for reference in [value] if isinstance(value, str) else value:
            model, _comma, record = str(reference).replace("(", ",").strip("), ").rpartition(",")
            record = record.strip()
            if record.isdecimal() and int(record) < 2**31:
                about = Domain("record_id", "=", int(record))
                domain |= about & Domain("model_name", "=", model.strip()) if model else about
        return domain

    @api.depends("state", "is_due", "scheduled_at")
    def _compute_is_overdue(self):
        for job in self:
            waiting_since = job.scheduled_at or job.create_date
            late = job.state == PENDING and (job._now() - waiting_since).total_seconds() > OVERDUE_SECONDS
            job.is_overdue = bool(late)

    def _search_is_overdue(self, operator, value):
        if operator != "in":
            return NotImplemented
        moment = self._now() - timedelta(seconds=OVERDUE_SECONDS)
        overdue = Domain("state", "=", PENDING) & (
            Domain("scheduled_at", "<", moment)
            | Domain("scheduled_at", "=", False) & Domain("create_date", "<", moment)
        )
        return overdue if True in value else ~overdue

    def _compute_is_latest(self):
        latest = self.search([("id", "in", self.ids), ("is_latest", "=", True)])
        for job in self:
            job.is_latest = job in latest

    def _search_is_latest(self, operator, value):
        if operator != "in":
            return NotImplemented
        latest = Domain.custom(to_sql=lambda _model, alias, _query: queries.among_latest(alias))
        return latest if True in value else ~latest

    # --- pictures --------------------------------------------------------------------------------------------------

    def graph_data(self):
        """The graph a job is part of, for its picture.

        :return: ``nodes``: dicts with id, state, name and method of jobs, the last two empty for jobs this user may not
            see; ``edges``: pairs of a list of ids and the list of ids of the jobs that wait for all of them;
            ``truncated``: whether there are more than 2,000 jobs, of which the nearest ones are shown
        :rtype: dict
        """
        self.ensure_one()
        self.check_access("read")
        nodes, edges = queries.graph_around(self.env.cr, self.id, GRAPH_NODES)
        visible = {
            job.id: {"name": job.name, "method": f"{job.model_name}.{job.method_name}"}
            for job in self.search_fetch([("id", "in", list(nodes))], ["name", "model_name", "method_name"])
        }
        return {
            "nodes": [
                {"id": job_id, "state": state, **visible.get(job_id, {"name": "", "method": ""})}
                for job_id, state in sorted(nodes.items())
            ],
            "edges": edges,
            "truncated": len(nodes) >= GRAPH_NODES,
        }

    # --- seen from the records -------------------------------------------------------------------------------------

    @api.model
    def record_jobs_summary(self, model_name, record_id):
        """Count the jobs of a record, for the button on its form.

        :param str model_name: model of the record
        :param int record_id: the record
        :return: number of jobs by state, without zeros; empty for who may not see jobs
        :rtype: dict
        """
        if not self.has_access("read"):
            return {}
        groups = self._read_group(self._record_domain(model_name, record_id), ["state"], ["__count"])
        return dict(groups)

    @api.model
    def record_jobs_action(self, model_name, record_id):
        """Action that lists the jobs of a record; see :meth:`record_jobs_summary`."""
        action = self.env["ir.actions.act_window"]._for_xml_id("job_worker.queue_job_action")
        domain = self._record_domain(model_name, record_id)
        return {**action, "domain": list(domain), "context": {}, "display_name": self.env._("Jobs of this Record")}

    @api.model
    def _record_domain(self, model_name, record_id):
        return Domain("model_name", "=", str(model_name)) & Domain("record_id", "=", int(record_id))


def error_line(text):
    """The exception at the end of a traceback, in one line.

    :param str text: ``exc_info`` of a job, or ``None``
    :rtype: str or bool
    """
    if not text or not text.strip():
        return False
    lines = text.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    after = lines[frames[-1] + 1 :] if frames else lines
    # below the last frame come its source and its markers, indented, then the exception
    line = next((line for line in after if line and not line.startswith("    ")), lines[-1]).strip()
    return line if len(line) <= ERROR_LINE_CHARACTERS else line[:ERROR_LINE_CHARACTERS] + "…"


def _span(first, last=None):
    """Numbers of attempts, as text."""
    return str(first) if last in (None, first) else f"{first}-{last}"


def _name_of(record):
    """Name of a record, or its id for who may not read it."""
    try:
        record.check_access("read")
        return record.display_name or f"#{record.id}"
    except (AccessError, MissingError):
        return f"#{record.id}"


def _humanize(method_name):
    return (method_name or "").strip("_").replace("_", " ").capitalize()


def _readable(value):
    """An argument as the author of the call would write it, roughly."""
    if isinstance(value, dict) and value.get(TYPE_KEY) == RECORDSET and isinstance(value.get("ids"), list):
        ids = value["ids"]
        shown = ", ".join(map(str, ids[:ARGUMENT_RECORDS]))
        return f"{value.get('model')}({shown}{', …' if len(ids) > ARGUMENT_RECORDS else ''})"
    if isinstance(value, dict) and TYPE_KEY in value:
        inner = value.get("value", value.get("items"))
        return f"{value[TYPE_KEY]}({json.dumps(inner, ensure_ascii=False)})"
    return json.dumps(value, indent=2, ensure_ascii=False)
