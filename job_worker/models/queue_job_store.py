"""Storing jobs: from captured calls to rows, one by one or ten thousand at a time."""

import json
import os
from functools import partial
from graphlib import CycleError, TopologicalSorter
from uuid import uuid4

from odoo import api, models
from odoo.exceptions import ConcurrencyError
from odoo.tools import ormcache, split_every, str2bool

from .. import graph, queries
from ..delay import DEFAULTS, Delayable, check_method_name, check_name, check_options, check_text
from ..insert_buffer import insert_soon
from ..job import PENDING, WAITING, storable_key
from ..lifecycle import have_settled, wake_workers
from ..loading import hold_claims
from .base import Base
from .job_serialization import dump_call

NO_DELAY_VARIABLE = "QUEUE_JOB__NO_DELAY"
NO_DELAY_CONTEXT = "queue_job__no_delay"
ROWS_PER_INSERT = 1000


class QueueJob(models.Model):
    _inherit = "queue.job"

    @api.private
    @api.model
    def enqueue(
        self,
        model_name,
        method_name,
        record_ids=(),
        args=(),
        kwargs=None,
        channel=None,
        priority=None,
        max_retries=None,
        scheduled_at=None,
        eta=None,
        description=None,
        identity_key=None,
        parent_id=None,
        graph_uuid=None,
        timeout=None,
        dependency_job_ids=None,
        run_on_failure=False,
    ):
        """Store one job, as part of the current transaction. ``with_delay()`` is the convenient form.

        :param str model_name: model of the records
        :param str method_name: method to call on them
        :param record_ids: ids of the records
        :param args: positional arguments
        :param kwargs: keyword arguments
        :param int parent_id: id of the job to wait for
        :param str graph_uuid: shared by the jobs of one graph
        :param dependency_job_ids: ids of several jobs to wait for
        :param bool run_on_failure: run if a job waited for fails, instead of when all are done
        :return: the job, or the active one that has the same identity key
        :raise ValueError: unknown model or parent, or a value out of range
        :raise TypeError: a value of a wrong type, or an argument that can't be stored
        """
        if model_name not in self.env:
            raise ValueError(f"there is no model {model_name!r}")
        if isinstance(record_ids, int):
            record_ids = (record_ids,)
        call = Delayable(
            self.env[model_name].browse(record_ids or ()),
            channel=channel,
            priority=priority,
            max_retries=max_retries,
            scheduled_at=scheduled_at,
            eta=eta,
            description=description,
            identity_key=identity_key,
            timeout=timeout,
        )
        check_method_name(method_name)
        if graph_uuid:
            check_name("graph_uuid", graph_uuid)
        call._capture(method_name, *(args or ()), **(kwargs or {}))._settled = True
        parent_ids = sorted({*([parent_id] if parent_id else []), *(dependency_job_ids or [])})
        values = self._job_values(call, {})
        values.update(graph_uuid=graph_uuid or None, run_on_failure=bool(run_on_failure))
        job_id = self._existing_jobs([values]).get(values["identity_key"])
        if not job_id:
            if len(self.sudo().browse(parent_ids).exists()) != len(parent_ids):
                raise ValueError(f"a job to wait for does not exist: {parent_ids}")
            self._set_parents(values, parent_ids)
            (job_id,) = self._store([values])
            self._after_store([job_id], [job_id] if parent_ids else [], parent_ids)
        return self.sudo().browse(job_id)

    @api.model
    def _store_graph(self, nodes):
        """Store the jobs of a graph.

        :param nodes: all its :class:`~odoo.addons.job_worker.delay.Delayable`
        :return: their jobs, parents before children
        """
        order = _parents_first(nodes)
        callers = {}
        values = {node: self._job_values(node, callers) for node in order}
        graph_uuid = str(uuid4()) if len(order) > 1 else None
        known = self._existing_jobs(values.values())
        new_ids = iter(queries.reserve_job_ids(self.env.cr, len(order)) if graph_uuid else [None])
        job_ids, rows, on_known, known_parents = {}, [], [], set()
        reserved = set()
        ends = {}  # what the children of a node are to wait for
        for node in order:
            row = values[node]
            parent_ids = sorted({job_id for parent in node._parents for job_id in ends[parent]})
            # A node whose key is taken is a second name of the job that has it. That job does not wait for anything
            # more, but what comes after the node does, for what comes before the node.
            if job_id := known.get(row["identity_key"]):
                job_ids[node] = job_id
                ends[node] = {job_id, *([] if node.run_on_failure else parent_ids)}
                continue
            row["id"] = job_ids[node] = next(new_ids)
            ends[node] = {row["id"]}
            reserved.add(row["id"])
            if row["identity_key"] and row["id"]:
                known[row["identity_key"]] = row["id"]
            row.update(graph_uuid=graph_uuid, run_on_failure=node.run_on_failure)
            self._set_parents(row, parent_ids)
            if known_before := set(parent_ids) - reserved:
                on_known.append(row["id"])
                known_parents |= known_before
            rows.append(row)
        stored = self._store(rows)
        self._after_store(stored, on_known, known_parents)
        if not graph_uuid:
            return self.sudo().browse(stored or known.values())
        return self.sudo().browse(dict.fromkeys(job_ids[node] for node in order))

    @api.model
    def _job_values(self, call, callers):
        """The row of a captured call, without its place in a graph.

        :param call: a :class:`~odoo.addons.job_worker.delay.Delayable`
        :param dict callers: keeps what calls of the same environment and model have in common
        :rtype: dict
        """
        if not call.method_name:
            raise ValueError(f"{call} has no method to call")
        options = check_options(call._options())
        records = call.recordset
        env = records.env
        what = f"{call.model_name}.{call.method_name}"
        if not all(isinstance(record_id, int) for record_id in records._ids):
            raise TypeError(f"{what}() can't be delayed on a record that is not saved yet")
        if not all(abs(record_id) < 2**31 for record_id in records._ids):
            raise ValueError(f"{what}() can't be delayed on a record with such an id: {records}")
        args, kwargs = dump_call(call.args, call.kwargs, what)
        caller = (env, call.model_name)
        if caller not in callers:
            callers[caller] = _caller(records)
        payload = {
            "model": call.model_name,
            "method": call.method_name,
            "ids": list(records._ids),
            "args": args,
            "kwargs": kwargs,
            **callers[caller],
        }
        identity_key = options["identity_key"]
        if callable(identity_key):
            identity_key = check_text("identity_key", identity_key(call) or "")
        moment, seconds = options["schedule"]
        values = {
            "uuid": str(uuid4()),
            "name": options["description"] or what,
            "payload": json.dumps(payload),
            "channel": options["channel"],
            "priority": options["priority"],
            "identity_key": storable_key(identity_key),
            "user_id": env.uid,
            "company_id": payload["company_id"],
            "max_retries": options["max_retries"],
            "timeout": options["timeout"],
            "model_name": call.model_name,
            "method_name": call.method_name,
            "record_id": records._ids[0] if records._ids else None,
            "scheduled_at": moment,
            "delay": seconds,
            "create_uid": env.uid,
        }
        if type(records)._job_store_values is not Base._job_store_values and (
            wanted := records._job_store_values({**values, "payload": payload})
        ):
            for name in wanted:
                field = self._fields.get(name)
                if field is None or not field.store or not field.column_type or name in _ENGINE_FIELDS:
                    raise ValueError(f"_job_store_values() can't set {name!r} of queue.job")
            columns = self._column_values(wanted)
            check_options({name: value for name, value in columns.items() if name in DEFAULTS})
            if "identity_key" in columns:
                columns["identity_key"] = storable_key(columns["identity_key"])
            values.update({name: value for name, value in columns.items() if name in values})
            values["extra"] = {name: value for name, value in columns.items() if name not in values}
            if "scheduled_at" in columns:
                values["delay"] = None
        return values

    def _column_values(self, values):
        """Values of fields as they go into their columns."""
        own = self.env["queue.job"]
        return {
            name: own._fields[name].convert_to_column_insert(own._fields[name].convert_to_cache(value, own), own)
            for name, value in values.items()
        }

    @ormcache()
    def _fields_with_default(self):
        """Fields of other addons that have a default, which the ORM would set in ``create()``."""
        return tuple(
            name
            for name, field in self._fields.items()
            if field.store and field.column_type and field.default and name not in queries.INSERT_COLUMNS
        )

    @api.model
    def _existing_jobs(self, rows):
        """The active jobs that have the identity keys of ``rows``: ids by key.

        One that has not begun is held until this transaction ends: it is to see what the caller wrote. Workers pass it
        by meanwhile, so they are told to look at it then.
        """
        keys = [row["identity_key"] for row in rows if row["identity_key"]]
        jobs = queries.hold_active_jobs(self.env.cr, keys) if keys else []
        for _key, job_id, state, is_due, channel, priority in jobs:
            if is_due:
                self._note_claimable(channel, priority, job_id)
                self._wake_workers_at_commit()
            elif state == WAITING:
                self._settle_at_commit([job_id])
        return {key: job_id for key, job_id, *_rest in jobs}

    def _set_parents(self, row, parent_ids):
        """Make a row wait for its parents: one is its ``parent_id``, several its dependencies."""
        row["parent_id"] = parent_ids[0] if len(parent_ids) == 1 else None
        row["dependency_job_ids"] = parent_ids if len(parent_ids) > 1 else []
        row["state"] = "waiting" if parent_ids else "pending"

    @api.model
    def _store(self, rows):
        """Insert rows.

        :return: the ids of the new jobs
        :raise ConcurrencyError: another transaction took an identity key; Odoo tries the request again
        """
        may_wait = len(rows) == 1 and _may_wait(rows[0])
        if names := rows and self._fields_with_default():
            defaults = self._column_values({name: self._fields[name].default(self) for name in names})
            for row in rows:
                row["extra"] = {**defaults, **row.get("extra", {})}
        if may_wait:
            ids = [insert_soon(self.env.cr, rows[0])]
        else:
            ids = []
            for chunk in split_every(ROWS_PER_INSERT, rows, list):
                ids += queries.insert_jobs(self.env.cr, chunk)
        if len(ids) != len(rows):
            raise ConcurrencyError("a job with the same identity key was stored meanwhile")
        for job_id, row in zip(ids, rows, strict=True):
            if row["state"] == PENDING:
                self._note_claimable(row["channel"], row["priority"], job_id)
        return ids

    @api.model
    def _after_store(self, job_ids, on_known=(), known=()):
        """What follows the insert of jobs.

        :param job_ids: all of them, parents before children
        :param on_known: those that wait for jobs that were there before, which may have ended
        :param known: the jobs that they wait for, which may also end before this transaction does
        """
        if on_known:
            graph.settle(self.env.cr, on_known)
            self._settle_at_commit(known)
        if job_ids:
            self._hand_over(job_ids)

    @api.model
    def _hand_over(self, job_ids):
        """Leave new jobs to the workers or, without workers, run them here and now.

        :param job_ids: parents before children
        """
        if self._no_delay_context() or str2bool(os.environ.get(NO_DELAY_VARIABLE, ""), False):
            for job in self.sudo().browse(job_ids):
                if job._is_pending():
                    job._run_now()
        else:
            self._wake_workers_at_commit()

    @api.model
    def _no_delay_context(self):
        """The context key that asks for running here and now, where given; what runs here passes it on to its jobs."""
        return {NO_DELAY_CONTEXT: True} if self.env.context.get(NO_DELAY_CONTEXT) else {}

    @api.model
    def _note_claimable(self, channel, priority, job_id):
        """Note a job that workers are to look at after the commit."""
        best = self.env.cr.precommit.data.setdefault("job_worker.claimable", {})
        best[channel] = min(best.get(channel, (priority, job_id)), (priority, job_id))

    @api.model
    def _settle_at_commit(self, job_ids):
        """Have workers settle jobs, and those after them, at the commit; see :func:`~.lifecycle.have_settled`."""
        self.env.cr.precommit.data.setdefault("job_worker.unsettled", set()).update(job_ids)
        self._wake_workers_at_commit()

    @api.model
    def _wake_workers_at_commit(self):
        """One notification for each transaction, however many jobs it stores."""
        hold_claims(self.env)
        precommit = self.env.cr.precommit
        if "job_worker.wake" not in precommit.data:
            precommit.data["job_worker.wake"] = True
            precommit.add(partial(_wake_workers, self.env))


def _wake_workers(env):
    cr = env.cr
    # Odoo tells other processes after the commit about settings that were changed. A worker is quicker than that.
    queries.signal_caches(cr, env.registry.cache_invalidated)
    # Taken out, because what another function before the commit enqueues after this needs a notification of its own.
    best = cr.precommit.data.pop("job_worker.claimable", {})
    unsettled = cr.precommit.data.pop("job_worker.unsettled", ())
    del cr.precommit.data["job_worker.wake"]
    if best:
        wake_workers(cr, [(channel, *key) for channel, key in best.items()])
    if unsettled:
        have_settled(cr, unsettled)


def _caller(records):
    """What the payload keeps of the environment of ``records``."""
    env = records.env
    keys = records._job_prepare_context_before_enqueue_keys()
    context, _none = dump_call([{key: env.context[key] for key in keys if key in env.context}], {}, "context")
    return {"uid": env.uid, "su": env.su, "company_id": env.company.id, "context": context[0]}


def _may_wait(row):
    """Whether a row is on its own, with nothing in it that the insert could refuse, or that depends on the moment."""
    alone = row["state"] == PENDING and not row.get("id")
    return alone and row["identity_key"] is None and row["delay"] is None and "extra" not in row


def _parents_first(nodes):
    if not any(node._parents for node in nodes):
        return nodes
    try:
        return list(TopologicalSorter({node: list(node._parents) for node in nodes}).static_order())
    except CycleError as error:
        raise ValueError(f"the graph of jobs has a cycle: {' -> '.join(map(str, error.args[1]))}") from error


# What says what a job is, where it stands and in which graph: not for _job_store_values().
_ENGINE_FIELDS = {
    "id", "uuid", "state", "payload", "model_name", "method_name", "result", "exc_info", "attempts", "parent_id",
    "graph_uuid", "run_on_failure", "started_at", "completed_at", "cancelled_at", "duration", "worker_id", "is_due",
    "claim_seq", "cancel_requested", "ended_by_id", "database_failures", "worker_died_at", "create_uid", "create_date",
    "write_uid", "write_date",
}  # fmt: skip
