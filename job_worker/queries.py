"""Every SQL statement of the engine, by name; state changes are in :mod:`.lifecycle`.

The functions take a cursor of Odoo or of psycopg2. Each statement names the index that serves it; "by key" is the
primary key.
"""
# pylint: disable=sql-injection
# what is formatted into statements are constants of this package

import json
import logging
import threading
import time
from collections import namedtuple
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from io import StringIO

from odoo import sql_db
from odoo.tools import SQL

from .job import DEFAULT_MAX_RETRIES, PENDING, STARTED, STATES, WAITING
from .lifecycle import ACTIVE, NOW, SETTLE, STALE_AFTER_SECONDS, TRANSITIONS, WAKE_UP, wake_workers

_sql_logger = logging.getLogger("odoo.sql_db")


def prepared_statement(name, sql, types):
    """A statement with named parameters in three forms.

    :param str sql: with ``%(…)s``
    :param dict types: type of each parameter
    :return: ``(PREPARE, EXECUTE, the plain statement with its parameters cast)``
    """
    places = {parameter: f"${place}" for place, parameter in enumerate(types, 1)}
    casts = {parameter: f"%({parameter})s::{kind}" for parameter, kind in types.items()}
    return (
        f"PREPARE {name}({', '.join(types.values())}) AS {sql % places}",
        f"EXECUTE {name}({', '.join(casts.values())})",
        sql % casts,
    )


# --- connections and tables -------------------------------------------------------------------------------------------


def listen(cr):
    """Receive :func:`wake_workers` and :func:`~.lifecycle.have_settled` on this connection."""
    cr.execute(f"LISTEN {WAKE_UP}; LISTEN {SETTLE}")


def ping(cr):
    """Ask for an answer."""
    cr.execute("SELECT 1", log_exceptions=False)


@contextmanager
def savepoint(cr):
    """What fails inside undoes nothing before it."""
    cr.execute("SAVEPOINT job_worker")
    try:
        yield
    except BaseException:
        cr.execute("ROLLBACK TO SAVEPOINT job_worker")
        raise
    cr.execute("RELEASE SAVEPOINT job_worker")


def set_local(settings):
    """Statements that change settings of the server until the end of the transaction, to go before another.

    :param dict settings: values by name
    """
    return "".join(f"SET LOCAL {name} = '{value}'; " for name, value in settings.items())


def columns_as_json(select):
    """The columns of a ``SELECT`` that reads no table itself, as an expression whose value is a JSON array."""
    return f"json_build_array({select.removeprefix('SELECT ')})"


def signal_caches(cr, names):
    """Tell other processes at the commit that they are to forget what they cached, as Odoo does after it.

    :param names: of groups of caches, see ``Registry.cache_invalidated``
    """
    for name in sorted(names):
        cr.execute(SQL("INSERT INTO %s DEFAULT VALUES", SQL.identifier(f"orm_signaling_{name}")))


def prepare_job_table(cr):
    """What the ORM does not make: the numbers of claims, and settings of the table."""
    cr.execute("CREATE SEQUENCE IF NOT EXISTS queue_job_claim_seq")
    # Until when callers wait, in milliseconds since 1970: a number that everybody sees, whatever their snapshot.
    cr.execute("CREATE SEQUENCE IF NOT EXISTS queue_job_hold_back_seq")
    # Every job is three row versions within seconds: vacuum by churn, not by a share of the history.
    cr.execute(
        "ALTER TABLE queue_job SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000,"
        " autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02,"
        " autovacuum_vacuum_cost_delay = 1)"
    )


def prepare_limit_table(cr):
    """The starts of throttled channels, written at every claim: apart from the record that people edit, so that the two
    never conflict.
    """
    cr.execute(
        "CREATE TABLE IF NOT EXISTS queue_limit_starts ("
        " limit_id integer PRIMARY KEY REFERENCES queue_limit ON DELETE CASCADE,"
        " starts timestamp[] NOT NULL) WITH (fillfactor = 50)"
    )


def drop_own_objects(cr):
    """Drop what the functions above made, and forget where the queue is at home, before the ORM drops its tables."""
    cr.execute("DROP TABLE IF EXISTS queue_limit_starts")
    cr.execute("DROP SEQUENCE IF EXISTS queue_job_claim_seq, queue_job_hold_back_seq")
    cr.execute("DELETE FROM ir_config_parameter WHERE key = 'job_worker.home'")


# --- storing ---------------------------------------------------------------------------------------------------------

INSERT_COLUMNS = (
    "id", "uuid", "name", "state", "payload", "channel", "priority", "identity_key", "user_id", "company_id",
    "scheduled_at", "is_due", "attempts", "max_retries", "timeout", "parent_id", "graph_uuid", "run_on_failure",
    "model_name", "method_name", "record_id", "cancel_requested", "database_failures", "create_uid", "create_date",
    "write_uid",
    "write_date",
)  # fmt: skip
_NOW_IN_TRANSACTION = "(now() AT TIME ZONE 'UTC')"
_INSERT_ROW = (
    "({id}, %s, %s, %s, %s, %s, %s, %s, %s, %s, {scheduled_at}, {is_due}, 0, %s, %s, %s, %s, %s, %s, %s, %s, false, 0,"
    f" %s, {_NOW_IN_TRANSACTION}, %s, {_NOW_IN_TRANSACTION}"
)
# Does nothing where the key is taken by a job this transaction sees, fails to serialise where it does not see it.
_ON_IDENTITY_CONFLICT = (
    " ON CONFLICT (identity_key) WHERE identity_key IS NOT NULL AND state IN ('waiting', 'pending', 'started')"
    " DO NOTHING"
)


def reserve_job_ids(cr, count):
    """Draw ``count`` ids for jobs to be inserted, in ascending order."""
    cr.execute("SELECT nextval('queue_job_id_seq') FROM generate_series(1, %s)", (count,))
    return sorted(row[0] for row in cr.fetchall())


def insert_jobs(cr, rows):
    """Insert jobs and the dependencies among them in three statements at most.

    :param rows: dicts as :meth:`QueueJob._job_values` makes them, with their place in the graph
    :return: ids of the inserted jobs; fewer than rows where an identity key is taken
    """
    ids = _copy_rows(cr, rows) if _can_be_copied(rows) else _insert_rows(cr, rows)
    if len(ids) == len(rows):
        pairs = zip(ids, rows, strict=True)
        edges = [(job_id, parent) for job_id, row in pairs for parent in row["dependency_job_ids"]]
        if edges:
            cr.execute(
                "INSERT INTO queue_job_dependency_rel (job_id, dependency_id)"
                " SELECT * FROM unnest(%s::bigint[], %s::bigint[])",
                tuple(map(list, zip(*edges, strict=True))),
            )
    return ids


_COPIED_TYPES = (str, int, float, date, type(None))


def _can_be_copied(rows):
    """Whether ``COPY`` can do it: ids are known, no identity keys, the same simple values of other addons."""
    return (
        all(row.get("id") and not row["identity_key"] for row in rows)
        and len({tuple(row.get("extra", ())) for row in rows}) == 1
        and all(isinstance(value, _COPIED_TYPES) for row in rows for value in row.get("extra", {}).values())
    )


def _copy_rows(cr, rows):
    """Insert rows with reserved ids, in a third of the time that ``INSERT`` takes to parse and plan as many values."""
    cr.execute(f"SELECT {NOW}, {_NOW_IN_TRANSACTION}")
    clock, now = cr.fetchone()
    same = {
        "identity_key": None, "attempts": 0, "cancel_requested": False, "database_failures": 0, "create_date": now,
        "write_date": now,
    }  # fmt: skip
    columns = [name for name in (*INSERT_COLUMNS, *rows[0].get("extra", ())) if name not in same]
    line_end = "\t".join(map(_copy_text, same.values()))
    lines = []
    for row in rows:
        moment = row["scheduled_at"] if row["delay"] is None else clock + timedelta(seconds=row["delay"])
        is_due = row["state"] == "pending" and (not moment or moment <= clock)
        values = {
            **row,
            "scheduled_at": moment,
            "is_due": is_due,
            "write_uid": row["create_uid"],
            **row.get("extra", {}),
        }
        lines.append("\t".join([*[_copy_text(values[name]) for name in columns], line_end]))
    quoted = ", ".join(f'"{name}"' for name in (*columns, *same))
    _copy(cr, f"COPY queue_job ({quoted}) FROM STDIN", "\n".join(lines))
    return [row["id"] for row in rows]


def _copy(cr, statement, text):
    """``COPY`` as seen by all that watches an Odoo cursor, which has no method of its own for it: it is counted for
    ``assertQueryCount()``, logged, and shown to the profiler.
    """
    cr, thread, begin = getattr(cr, "_cursor", cr), threading.current_thread(), time.time()
    cr.copy_expert(statement, StringIO(text))
    seconds = time.time() - begin
    _sql_logger.debug("[%.3f ms] query: %s", 1000 * seconds, statement)
    cr.sql_log_count += 1
    sql_db.sql_counter += 1
    for name, more in (("query_count", 1), ("query_time", seconds)):
        if hasattr(thread, name):
            setattr(thread, name, getattr(thread, name) + more)
    for hook in getattr(thread, "query_hooks", ()):
        hook(cr, statement, None, begin, seconds)


def _copy_text(value):
    """A value in the text format of ``COPY``."""
    if value is None:
        return r"\N"
    if not isinstance(value, str):
        return str(value)
    # several times faster than str.translate()
    return value.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r")


def _insert_rows(cr, rows):
    extra_columns = sorted({name for row in rows for name in row.get("extra", ())})
    tuples, params = [], []
    for row in rows:
        job_sql, job_params = _insert_row(row, extra_columns)
        tuples.append(job_sql)
        params += job_params
    columns = ", ".join(f'"{name}"' for name in (*INSERT_COLUMNS, *extra_columns))
    keyed = any(row["identity_key"] for row in rows)
    cr.execute(
        f"INSERT INTO queue_job ({columns}) VALUES {', '.join(tuples)}"
        f"{_ON_IDENTITY_CONFLICT if keyed else ''} RETURNING id",
        params,
    )
    return [row[0] for row in cr.fetchall()]


def _insert_row(row, extra_columns):
    moment, delay = row["scheduled_at"], row["delay"]
    params = []
    job_id = "DEFAULT"
    if row.get("id"):
        job_id = "%s"
        params.append(row["id"])
    params += [row["uuid"], row["name"], row["state"], row["payload"], row["channel"], row["priority"]]
    params += [row["identity_key"], row["user_id"], row["company_id"]]
    scheduled_at, is_due = "NULL", "true" if row["state"] == "pending" else "false"
    if moment or delay is not None:
        scheduled_at = "%s" if moment else f"{NOW} + make_interval(secs => %s)"
        params.append(moment or delay)
        if row["state"] == "pending":
            is_due = f"%s <= {NOW}" if isinstance(moment, datetime) else "%s <= 0"
            params.append(moment or delay)
    params += [row["max_retries"], row["timeout"], row["parent_id"], row["graph_uuid"], row["run_on_failure"]]
    params += [row["model_name"], row["method_name"], row["record_id"], row["create_uid"], row["create_uid"]]
    sql = _INSERT_ROW.format(id=job_id, scheduled_at=scheduled_at, is_due=is_due)
    for name in extra_columns:
        extra = row.get("extra", {})
        sql += ", %s" if name in extra else ", DEFAULT"
        params += [extra[name]] if name in extra else []
    return sql + ")", params


# For how long callers wait that would hold a job which is due, so that it can begin; and for how long not again.
HOLD_BACK_SECONDS = 1
HOLD_BACK_PAUSE_SECONDS = 10


def active_jobs_by_identity(cr, keys):
    """Map identity keys to the ids of the active jobs that have them; index: queue_job_identity_idx."""
    cr.execute(
        "SELECT identity_key, id FROM queue_job WHERE identity_key = ANY(%s) AND identity_key IS NOT NULL"
        " AND state IN ('waiting', 'pending', 'started')",
        (list(keys),),
    )
    return dict(cr.fetchall())


def hold_active_jobs(cr, keys):
    """The active jobs that have these identity keys, as they are now; index: queue_job_identity_idx.

    Those that have not begun neither begin nor end, nor change otherwise, before this transaction has ended. Those that
    are running are not held up. In a transaction at REPEATABLE READ this fails to serialise where one was changed since
    it began.

    Callers share what they hold. So that a job can begin that each holds before the last one has let go, workers have
    them wait for a moment: :func:`hold_back_callers`.

    :param cr: Odoo cursor
    :return: ``(identity_key, id, state, is_due, channel, priority)`` of each
    """
    cr.execute(
        """
        WITH known AS MATERIALIZED (
            SELECT id FROM queue_job
             WHERE identity_key = ANY(%(keys)s) AND identity_key IS NOT NULL AND state IN ('waiting', 'pending')
        ), awaited AS MATERIALIZED (
            SELECT pg_sleep(CASE WHEN seconds BETWEEN 0 AND %(most)s THEN seconds ELSE 0 END)
              FROM (SELECT last_value / 1000.0 - extract(epoch FROM clock_timestamp())::float AS seconds
                      FROM queue_job_hold_back_seq WHERE EXISTS (SELECT FROM known)) wait
        ), held AS MATERIALIZED (
            SELECT identity_key, id, state, is_due, channel, priority FROM queue_job
             WHERE id = ANY(ARRAY(SELECT id FROM awaited CROSS JOIN known)) AND state IN ('waiting', 'pending')
               FOR SHARE
        )
        SELECT * FROM held
        UNION ALL
        SELECT identity_key, id, state, is_due, channel, priority FROM queue_job
         WHERE identity_key = ANY(%(keys)s) AND identity_key IS NOT NULL AND state = 'started'
        """,
        {"keys": list(keys), "most": HOLD_BACK_SECONDS},
    )
    jobs = cr.fetchall()
    if running := [job_id for _key, job_id, state, *_rest in jobs if state == STARTED]:
        # The lock tells whether it is still as this transaction sees it. Kept, it would keep the job from finishing.
        with cr.savepoint(flush=False) as savepoint:
            cr.execute("SELECT FROM queue_job WHERE id = ANY(%s) FOR SHARE", (running,))
            savepoint.rollback()
    return jobs


def hold_back_callers(cr):
    """Have callers wait for a second who would hold a job that has not begun, unless they did so a moment ago."""
    cr.execute(
        """
        SELECT setval('queue_job_hold_back_seq', ((now + %(seconds)s) * 1000)::bigint)
          FROM queue_job_hold_back_seq, extract(epoch FROM clock_timestamp()) now
         WHERE last_value / 1000.0 NOT BETWEEN now - %(pause)s AND now + %(seconds)s
        """,
        {"seconds": HOLD_BACK_SECONDS, "pause": HOLD_BACK_PAUSE_SECONDS},
    )


# --- graphs ----------------------------------------------------------------------------------------------------------


def children_of(cr, ids):
    """Ids of the jobs that wait, or waited, for any of ``ids``; indexes: parent_id, the relation's (dependency_id)."""
    cr.execute(
        "SELECT id FROM queue_job WHERE parent_id = ANY(%(ids)s)"
        " UNION SELECT job_id FROM queue_job_dependency_rel WHERE dependency_id = ANY(%(ids)s)",
        {"ids": list(ids)},
    )
    return [row[0] for row in cr.fetchall()]


def lock_jobs(cr, ids, wait=True):
    """Keep others from changing jobs that are not running until the end of the transaction; by key, in order of ids.

    In a transaction at REPEATABLE READ this fails to serialise where one was changed since it began.

    :param bool wait: for those that somebody is changing; else they are left out
    :return: ids of the jobs that are locked
    """
    cr.execute(
        "SELECT id FROM queue_job WHERE id = ANY(%s) AND state <> 'started' ORDER BY id FOR NO KEY UPDATE"
        + ("" if wait else " SKIP LOCKED"),
        (list(ids),),
    )
    return [row[0] for row in cr.fetchall()]


def undecided_with_parents(cr, ids):
    """Of ``ids``, the jobs whose state their parents may still decide, with the states of these parents; by key.

    :return: ``(id, state, run_on_failure, {parent state: lowest parent id})`` of each
    """
    cr.execute(
        """
        SELECT child.id, child.state, child.run_on_failure,
               COALESCE(jsonb_object_agg(parent.state, parent.id) FILTER (WHERE parent.id IS NOT NULL), '{}')
          FROM queue_job child
          LEFT JOIN LATERAL (
               SELECT job.state, min(job.id) AS id
                 FROM (SELECT child.parent_id AS id
                       UNION ALL
                       SELECT dependency_id FROM queue_job_dependency_rel WHERE job_id = child.id) edge
                 JOIN queue_job job ON job.id = edge.id
                GROUP BY job.state
               ) parent ON true
         WHERE child.id = ANY(%s) AND (child.state IN ('waiting', 'pending') OR child.ended_by_id IS NOT NULL)
         GROUP BY child.id
        """,
        (list(ids),),
    )
    return cr.fetchall()


def with_unfinished_parents(cr, ids):
    """Of ``ids``, those with a parent that has not ended or is one of ``ids`` itself; by key."""
    cr.execute(
        """
        SELECT DISTINCT edge.child_id
          FROM (SELECT id AS child_id, parent_id FROM queue_job WHERE id = ANY(%(ids)s) AND parent_id IS NOT NULL
                UNION ALL
                SELECT job_id, dependency_id FROM queue_job_dependency_rel WHERE job_id = ANY(%(ids)s)) edge
          JOIN queue_job parent ON parent.id = edge.parent_id
         WHERE parent.state IN ('waiting', 'pending', 'started') OR parent.id = ANY(%(ids)s)
        """,
        {"ids": list(ids)},
    )
    return {row[0] for row in cr.fetchall()}


def with_free_identity(cr, ids):
    """Of ``ids``, the ended jobs that may become active again: no active job has their identity key, and of several
    with the same key only the first; by key and queue_job_identity_idx.
    """
    cr.execute(
        """
        SELECT DISTINCT ON (COALESCE(job.identity_key, job.id::text)) job.id
          FROM queue_job job
         WHERE job.id = ANY(%s) AND job.state IN ('done', 'failed', 'cancelled')
           AND NOT EXISTS (SELECT FROM queue_job other WHERE other.identity_key = job.identity_key
                              AND other.identity_key IS NOT NULL AND other.state IN ('waiting', 'pending', 'started'))
         ORDER BY COALESCE(job.identity_key, job.id::text), job.id
        """,
        (list(ids),),
    )
    return [row[0] for row in cr.fetchall()]


def decided_by_parents(cr, ids):
    """Of ``ids``, those that their parents ended, and those promoted but not begun; by key."""
    cr.execute(
        "SELECT id, state FROM queue_job WHERE id = ANY(%s)"
        " AND (ended_by_id IS NOT NULL OR (state = 'pending' AND attempts = 0))",
        (list(ids),),
    )
    return dict(cr.fetchall())


def waiting_jobs(cr, after_id, count):
    """The next ``count`` waiting jobs after ``after_id``, by id; index: queue_job_waiting_idx."""
    cr.execute("SELECT id FROM queue_job WHERE state = 'waiting' AND id > %s ORDER BY id LIMIT %s", (after_id, count))
    return [row[0] for row in cr.fetchall()]


# --- claiming --------------------------------------------------------------------------------------------------------


def refresh_due(cr, ids):
    """After a change of the schedule of pending jobs: whether they are claimable now; by key."""
    cr.execute(
        f"UPDATE queue_job SET is_due = (scheduled_at IS NULL OR scheduled_at <= {NOW})"
        " WHERE id = ANY(%s) AND state = 'pending'",
        (list(ids),),
    )


def put_first(cr, ids):
    """Make pending jobs the next of their channels; by key and queue_job_claim_idx.

    :return: ids of the pending ones
    """
    cr.execute(
        """
        UPDATE queue_job job
           SET scheduled_at = NULL, is_due = true,
               priority = least(priority, (SELECT greatest(priority, -2147483647) - 1 FROM queue_job head
                                            WHERE head.state = 'pending' AND head.is_due AND head.channel = job.channel
                                            ORDER BY channel, priority LIMIT 1))
         WHERE id = ANY(%s) AND state = 'pending'
        RETURNING channel, priority, id
        """,
        (list(ids),),
    )
    moved = cr.fetchall()
    wake_workers(cr, moved)
    return [job_id for _channel, _priority, job_id in moved]


# --- running ---------------------------------------------------------------------------------------------------------


# The claim that owns a running job. As an expression, so that no index but that of the id can serve: by the one of the
# running jobs, a job would be sought among all of them and all that ran since the oldest snapshot.
_OWNER = "CASE state WHEN 'started' THEN claim_seq END"

BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ"
BEGIN_BOOKKEEPING = "BEGIN ISOLATION LEVEL READ COMMITTED"
# What a job may have set, whether for its session or its transaction.
FORGET_SETTINGS = "RESET ALL; SET SESSION AUTHORIZATION DEFAULT"
# What a job that failed may leave in its session: settings, and locks that it had no chance to release.
FORGET_SESSION = f"{FORGET_SETTINGS}; SELECT pg_advisory_unlock_all()"
# For the rest of a transaction, whatever the job has set: the worker's rights, and our tables instead of temporary ones
# of the same name.
OWN_TABLES = (
    "SET LOCAL SESSION AUTHORIZATION DEFAULT; SET LOCAL ROLE NONE; SELECT set_config('search_path', reset_val ||"
    " ', pg_temp', true) FROM pg_settings WHERE name = 'search_path'"
)

# The end of a successful attempt, by key. If the attempt does not own the job any more there is no row, and the
# division by their number fails: what follows in the same string, the COMMIT, is not reached then.
_FINISH = f"""
WITH finished AS (
    UPDATE queue_job SET {TRANSITIONS["finish"].set_clause}
     WHERE id = %(id)s AND {_OWNER} = %(claim_seq)s AND NOT cancel_requested
    RETURNING id
) SELECT 1 / count(*) FROM finished
"""
PREPARE_FINISH, EXECUTE_FINISH, FINISH = prepared_statement(
    "job_worker_finish", _FINISH, {"id": "bigint", "claim_seq": "bigint", "result": "jsonb", "duration": "float8"}
)
# Goes before it: planned once, maybe when the table was all but empty and reading all of it looked cheap.
PLAN_BY_INDEX = "SET LOCAL enable_seqscan = off"


def finish(cr, claim_seq, job_id, result, duration):
    """End an attempt as done, in the job's own transaction; by key.

    :raise psycopg2.errors.DivisionByZero: the attempt does not own the job any more
    """
    cr.execute(FINISH, {"id": job_id, "claim_seq": claim_seq, "result": result, "duration": duration})


def is_read_only(cr):
    """Whether a transaction may not write, and whether it has written before.

    :return: ``(read only, has written)``
    """
    cr.execute("SELECT current_setting('transaction_read_only')::boolean, pg_current_xact_id_if_assigned() IS NOT NULL")
    return cr.fetchone()


def payload_of(cr, job_id):
    """The payload of a job; by key."""
    cr.execute("SELECT payload FROM queue_job WHERE id = %s", (job_id,))
    row = cr.fetchone()
    return row and row[0]


def lock_attempt(cr, claim_seq, job_id):
    """Whether the attempt still owns its job, for the rest of this transaction; by key."""
    cr.execute(
        f"SELECT FROM queue_job WHERE id = %s AND {_OWNER} = %s AND NOT cancel_requested FOR NO KEY UPDATE",
        (job_id, claim_seq),
    )
    return bool(cr.rowcount)


def attempt_states(cr, claims):
    """Of running attempts, which still own their job, and which of them were asked to stop; by key.

    :param claims: ``{job id: claim_seq}``
    :return: ``{job id: cancel_requested}`` of those that own their job
    """
    cr.execute(f"SELECT id, {_OWNER}, cancel_requested FROM queue_job WHERE id = ANY(%s)", (list(claims),))
    return {job_id: cancel for job_id, owner, cancel in cr.fetchall() if claims[job_id] == owner}


def is_as_claimed(cr, claim):
    """Whether a job that was claimed a while ago is still to run for whom it was claimed; by key.

    :param claim: a :class:`~.worker.attempt.Claim`
    """
    cr.execute(
        f"SELECT FROM queue_job WHERE id = %s AND {_OWNER} = %s AND NOT cancel_requested"
        " AND (user_id, company_id) IS NOT DISTINCT FROM (%s::int, %s::int)",
        (claim.id, claim.claim_seq, claim.user_id, claim.company_id),
    )
    return bool(cr.rowcount)


def find_gone(cr, user_id, company_ids):
    """Whether a user, and which companies, do not exist; by key.

    :return: ``(whether the user is gone, ids of the companies that are)``
    """
    cr.execute(
        "SELECT NOT EXISTS (SELECT FROM res_users WHERE id = %s),"
        " ARRAY(SELECT wanted FROM unnest(%s::int[]) wanted"
        " WHERE NOT EXISTS (SELECT FROM res_company WHERE id = wanted))",
        (user_id, list(company_ids)),
    )
    return cr.fetchone()


def request_cancel(cr, ids):
    """Ask the workers to stop running jobs; by key.

    :return: ids of those that are running
    """
    cr.execute(
        "UPDATE queue_job SET cancel_requested = true WHERE id = ANY(%s) AND state = 'started' RETURNING id",
        (list(ids),),
    )
    return [row[0] for row in cr.fetchall()]


KEPT_ATTEMPTS = 50

# By the index on job_id, which finds as many rows as are kept.
_RECORD_ATTEMPT = f"""
WITH known AS (
    SELECT id, number, row_number() OVER (ORDER BY id) AS place, count(*) OVER () AS rows
      FROM queue_job_attempt WHERE job_id = %(job_id)s
), recorded AS (
    INSERT INTO queue_job_attempt (job_id, number, times, started_at, ended_at, worker_id, outcome, counted, error)
    SELECT id, 1 + COALESCE((SELECT greatest(max(number), count(*)) FROM known), 0), 1,
           {NOW} - make_interval(secs => %(duration)s), {NOW}, worker_id, %(outcome)s, %(counted)s, %(error)s
      FROM queue_job WHERE id = %(job_id)s AND {_OWNER} = %(claim_seq)s
    RETURNING times
), forgotten AS (
    DELETE FROM queue_job_attempt
     WHERE id IN (SELECT id FROM known WHERE place > 1 AND place <= rows + 1 - {KEPT_ATTEMPTS})
       AND EXISTS (SELECT FROM recorded)
)
SELECT times FROM recorded
"""
_REPEAT_ATTEMPT = f"""
UPDATE queue_job_attempt latest
   SET number = COALESCE(number, 1) + 1, times = COALESCE(times, 1) + 1, ended_at = {NOW}, worker_id = job.worker_id
  FROM queue_job job
 WHERE job.id = %(job_id)s AND {_OWNER} = %(claim_seq)s
   AND latest.id = (SELECT max(id) FROM queue_job_attempt WHERE job_id = %(job_id)s)
   AND latest.outcome = %(outcome)s AND NOT latest.counted AND NOT %(counted)s AND latest.error = %(error)s
RETURNING times
"""


def record_attempt(cr, job_id, claim_seq, outcome, counted, duration, error, *, repeated=False):
    """Keep an attempt that did not succeed; to be called before the job forgets it.

    Of those of a job the first and the latest 50 are kept.

    :param str outcome: one of the outcomes of ``queue.job.attempt``
    :param bool repeated: if the one before ended in the same way, count it there instead
    :return: how many attempts in a row ended like this and are kept as one; ``None`` if it does not own the job
    """
    params = {
        "job_id": job_id, "claim_seq": claim_seq, "outcome": outcome, "counted": counted, "duration": duration,
        "error": error,
    }  # fmt: skip
    if repeated:
        cr.execute(_REPEAT_ATTEMPT, params)
    if not repeated or not cr.rowcount:
        cr.execute(_RECORD_ATTEMPT, params)
    row = cr.fetchone()
    return row and row[0]


def uncounted_in_a_row(cr, job_id):
    """How many of a job's latest attempts failed and did not count; by the index on job_id."""
    cr.execute(
        """
        SELECT COALESCE(sum(COALESCE(times, 1)), 0) FROM queue_job_attempt
         WHERE job_id = %(job_id)s AND outcome = 'failed'
           AND id > COALESCE((SELECT max(id) FROM queue_job_attempt WHERE job_id = %(job_id)s AND counted), 0)
        """,
        {"job_id": job_id},
    )
    return cr.fetchone()[0]


# --- workers ---------------------------------------------------------------------------------------------------------

# How long a worker may be silent it says itself; of one that does not, whoever asks decides.
_PATIENCE = "make_interval(secs => COALESCE(worker.stale_after, {otherwise}))"
# A heartbeat of the future is from before the server's clock was set back: it says nothing.
_IS_SILENT = f"worker.last_heartbeat NOT BETWEEN {NOW} - {_PATIENCE} AND {NOW} + {_PATIENCE}"
_IS_SILENT_FOR_ASKER = _IS_SILENT.format(otherwise="%(stale)s")
_IS_ALIVE = f"worker.state != 'dead' AND NOT {_IS_SILENT.format(otherwise=STALE_AFTER_SECONDS)}"


def register_worker(cr, values):
    """Add the row of a worker; ``values`` has name, hostname, pid, version, databases, slots, stale_after, state,
    reason and pause_requested.
    """
    cr.execute(
        f"""
        INSERT INTO queue_worker (name, hostname, pid, version, databases, slots, stale_after, running_jobs, memory,
                                  started_at, last_heartbeat, state, reason, pause_requested, create_date, write_date)
        VALUES (%(name)s, %(hostname)s, %(pid)s, %(version)s, %(databases)s, %(slots)s, %(stale_after)s, 0, 0,
                {NOW}, {NOW}, %(state)s, %(reason)s, %(pause_requested)s, {NOW}, {NOW})
            -- the first try may have been committed and not answered
            ON CONFLICT (name) DO UPDATE SET state = excluded.state, reason = excluded.reason,
                                             last_heartbeat = excluded.last_heartbeat
        """,
        values,
    )


def beat(cr, name, state, reason, running_jobs, memory):
    """Show that a worker lives.

    :param str reason: why it claims nothing, or ``None``
    :param int memory: MiB
    :return: whether it is asked to pause, or ``None`` if it was taken for dead
    """
    cr.execute(
        f"UPDATE queue_worker SET last_heartbeat = {NOW}, state = %s, reason = %s, running_jobs = %s, memory = %s"
        " WHERE name = %s AND state != 'dead' RETURNING pause_requested",
        (state, reason, running_jobs, memory, name),
    )
    row = cr.fetchone()
    return row[0] if row else None


def workers_alive(cr):
    """Ids of the workers that are not silent for longer than they may be."""
    cr.execute(f"SELECT id FROM queue_worker worker WHERE {_IS_ALIVE}")
    return [worker_id for (worker_id,) in cr.fetchall()]


def why_nobody_claims(cr):
    """Why the workers that live claim nothing, ``None`` if one of them does, or if there is none."""
    cr.execute(f"SELECT min(reason) FROM queue_worker worker WHERE {_IS_ALIVE} HAVING bool_and(reason IS NOT NULL)")
    row = cr.fetchone()
    return row[0] if row else None


def unregister_worker(cr, name):
    """Remove the row of a worker that ends."""
    cr.execute("DELETE FROM queue_worker WHERE name = %s", (name,))


def bury_workers(cr, stale_after_seconds, name=None):
    """Mark workers as dead: whose heartbeat is too old, or those of the process whose first one is called ``name``;
    forget those dead for a day.

    Heartbeats of the future count from now on: who lives will report, who does not is dead after the usual time.

    :param float stale_after_seconds: how long a worker may be silent that does not say so itself
    """
    # One whose row is locked is just reporting, or was frozen while it did: don't wait for it.
    cr.execute(
        f"UPDATE queue_worker SET last_heartbeat = {NOW} WHERE id IN ("
        f"SELECT id FROM queue_worker worker WHERE state != 'dead' AND last_heartbeat > {NOW}"
        f" AND {_IS_SILENT_FOR_ASKER} FOR NO KEY UPDATE SKIP LOCKED)",
        {"stale": stale_after_seconds},
    )
    cr.execute(
        f"UPDATE queue_worker SET state = 'dead' WHERE id IN ("
        f"SELECT id FROM queue_worker worker WHERE state != 'dead'"
        f" AND (split_part(name, '/', 1) = %(name)s OR {_IS_SILENT_FOR_ASKER})"
        " FOR NO KEY UPDATE SKIP LOCKED)",
        {"name": name, "stale": stale_after_seconds},
    )
    cr.execute(f"DELETE FROM queue_worker WHERE state = 'dead' AND last_heartbeat < {NOW} - interval '1 day'")


def upkeep_due(cr, stale_after_seconds):
    """Whether there is something to recover, whether there are waiting jobs to look after, and the server's time.

    Indexes: queue_job_running_idx, queue_job_waiting_idx.
    """
    cr.execute(
        f"""
        SELECT EXISTS (SELECT FROM queue_worker worker WHERE state != 'dead' AND {_IS_SILENT_FOR_ASKER})
            OR EXISTS (SELECT FROM queue_job running LEFT JOIN queue_worker worker ON worker.name = running.worker_id
                        WHERE running.state = 'started' AND COALESCE(worker.state, 'dead') = 'dead'
                          AND (running.worker_id IS NOT NULL
                               OR running.started_at < {NOW} - make_interval(secs => %(stale)s))),
               EXISTS (SELECT FROM queue_job WHERE state = 'waiting'), extract(epoch FROM clock_timestamp())::float
        """,
        {"stale": stale_after_seconds},
    )
    return cr.fetchone()


Orphan = namedtuple(
    "Orphan", "id claim_seq worker_id begun attempts max_retries cancel_requested exc_info duration uuid"
)


def orphaned_jobs(cr, stale_after_seconds, but, count):
    """Lock jobs whose worker is dead or unknown; index: queue_job_running_idx.

    A worker runs what it claimed in the order it claimed it, so of its jobs only the first ``slots`` can have begun.
    Those come last, so that they still are the first ones when ``count`` cuts the list.

    :param but: ids of jobs to leave out
    :rtype: list[Orphan]
    """
    cr.execute(
        f"""
        SELECT job.id, job.claim_seq, job.worker_id, orphan.begun, COALESCE(job.attempts, 0),
               COALESCE(job.max_retries, {DEFAULT_MAX_RETRIES}), job.cancel_requested, job.exc_info,
               extract(epoch FROM {NOW} - job.started_at)::float, job.uuid
          FROM (SELECT running.id, running.claim_seq,
                       row_number() OVER (PARTITION BY worker_id ORDER BY claim_seq)
                           <= COALESCE(worker.slots, 2147483647) AS begun
                  FROM queue_job running
                  LEFT JOIN queue_worker worker ON worker.name = running.worker_id
                 WHERE running.state = 'started' AND COALESCE(worker.state, 'dead') = 'dead'
                   AND (running.worker_id IS NOT NULL
                        OR running.started_at < {NOW} - make_interval(secs => %(stale)s))) orphan
          JOIN queue_job job ON job.id = orphan.id AND job.state = 'started' AND job.claim_seq = orphan.claim_seq
         WHERE NOT job.id = ANY(%(but)s)
         ORDER BY orphan.begun, job.id LIMIT %(count)s
           FOR NO KEY UPDATE OF job SKIP LOCKED
        """,
        {"stale": stale_after_seconds, "but": but, "count": count},
    )
    return [Orphan(*row) for row in cr.fetchall()]


def claimed_by(cr, name):
    """The started jobs of a worker, ``{job id: claim_seq}``; index: queue_job_running_idx."""
    cr.execute("SELECT id, claim_seq FROM queue_job WHERE state = 'started' AND worker_id = %s", (name,))
    return dict(cr.fetchall())


def session_limits(cr):
    """After how many seconds the server ends a session like this one in a transaction, by setting; 0 for never."""
    cr.execute(
        "SELECT name, setting::float / 1000 FROM pg_settings"
        " WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
    )
    return dict(cr.fetchall())


def ended_sessions(cr, pids):
    """Which of these sessions the server does not have any more."""
    pids = set(filter(None, pids))
    cr.execute("SELECT pid FROM pg_stat_get_activity(NULL) WHERE pid = ANY(%s)", (list(pids),))
    return pids - {pid for (pid,) in cr.fetchall()}


def terminate_backend(cr, pid):
    """End another database session of ours."""
    cr.execute("SELECT pg_terminate_backend(%s)", (pid,))


# --- the upgrade gate ------------------------------------------------------------------------------------------------

# An advisory lock, whose first key channels don't have. A process that installs or upgrades modules holds it until the
# others are told; claims try for it, shared.
_LOADING_LOCK = f"{0x6A6F63}, 0"
_IN_USE = "state IN ('installed', 'to install', 'to upgrade', 'to remove')"
_PARTIALLY_UPDATED = "EXISTS (SELECT FROM ir_config_parameter WHERE key = 'base.partially_updated_database')"
_NOBODY_LOADS = f"pg_try_advisory_xact_lock_shared({_LOADING_LOCK})"
# One number for all modules in use, another one when any of them was written; index: ir_module_module__state_index.
_MODULES = f"""(SELECT sum(timestamp_hash_extended(COALESCE(write_date, '-infinity'),
                hashtextextended(concat_ws(' ', name, state, latest_version), 0)))::text
                FROM ir_module_module WHERE {_IN_USE})"""
GATE_IS_CLOSED = f"""(%(modules)s IS NOT NULL AND (
       NOT {_NOBODY_LOADS} OR {_PARTIALLY_UPDATED} OR {_MODULES} IS DISTINCT FROM %(modules)s))"""
"""SQL condition for claims: modules are not as they were when the gate was found open, ``%(modules)s``, or are just
being changed. Without modules to compare, never."""


def gate_state(cr):
    """What the upgrade gate goes by.

    :return: ``(what GATE_IS_CLOSED compares, whether the database is partially updated, whether nobody is loading a
        registry to change modules, [name, state, version] of each module in use that has code)``
    """
    cr.execute(
        f"""
        SELECT {_MODULES}, {_PARTIALLY_UPDATED}, {_NOBODY_LOADS},
               (SELECT json_agg(json_build_array(name, state, latest_version) ORDER BY name)
                  FROM ir_module_module module
                 WHERE {_IN_USE}
                   -- a column of an addon, for modules that are imported as data
                   AND (to_jsonb(module) ->> 'imported') IS DISTINCT FROM 'true')
        """
    )
    return cr.fetchone()


def hold_claims(cr):
    """Keep workers from claiming until the end of the transaction, however long it idles or its host is silent."""
    cr.execute(
        """
        SELECT set_config(name, value, true)
          FROM (VALUES ('lock_timeout', '0'), ('statement_timeout', '0'), ('transaction_timeout', '0'),
                       ('idle_in_transaction_session_timeout', '0'), ('tcp_keepalives_idle', '10'),
                       ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3')) wanted(name, value)
          JOIN pg_settings USING (name)
        """
    )
    cr.execute(f"SELECT pg_advisory_xact_lock({_LOADING_LOCK})")


def modules_differ(cr, modules):
    """Whether modules are being changed, or were since the gate was found open with ``modules``."""
    cr.execute(f"SELECT {_MODULES} IS DISTINCT FROM %s", (modules,))
    return cr.fetchone()[0]


# --- home -------------------------------------------------------------------------------------------------------------

_HOME_TABLES = "to_regclass('ir_config_parameter'), to_regclass('queue_job'), to_regclass('queue_worker')"


def is_complete(cr):
    """Whether the queue's tables are there with all they hold; the database may not be one of Odoo's at all.

    A restore fills tables one by one and adds their foreign keys last of all.
    """
    cr.execute(
        f"SELECT count(DISTINCT conrelid) FROM pg_constraint WHERE contype = 'f' AND conrelid IN ({_HOME_TABLES})"
    )
    return cr.fetchone()[0] == 3


def place_and_home(cr):
    """Where the database is, and where its queue is at home.

    :return: identifier of the cluster or ``None``, oid of the database, ``database.uuid``, text of the home
    """
    cr.execute("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
    system = "(SELECT system_identifier FROM pg_control_system())" if cr.fetchone()[0] else "NULL"
    cr.execute(
        f"SELECT {system}, (SELECT oid FROM pg_database WHERE datname = current_database()),"
        " (SELECT value FROM ir_config_parameter WHERE key = 'database.uuid'),"
        " (SELECT value FROM ir_config_parameter WHERE key = 'job_worker.home')"
    )
    return cr.fetchone()


def write_home(cr, text):
    """Note where the queue is at home.

    Its claims get numbers of their own: an attempt of a database that had the same name before, and of a copy of it, is
    not to be taken for one of here.
    """
    cr.execute(
        "INSERT INTO ir_config_parameter (key, value, create_date, write_date)"
        f" VALUES ('job_worker.home', %s, {NOW}, {NOW})"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value, write_date = excluded.write_date",
        (text,),
    )
    # now that others who settle in wait for the row: none sets back what another has begun to count from
    cr.execute(
        "SELECT setval('queue_job_claim_seq', GREATEST(nextval('queue_job_claim_seq'),"
        " (extract(epoch FROM clock_timestamp()) * 1000000)::bigint))"
    )


def lock_home(cr):
    """Wait for others who decide about the home, and keep them waiting."""
    cr.execute("SELECT FROM ir_config_parameter WHERE key = 'job_worker.home' FOR UPDATE")


def others_are_writing(cr):
    """Whether a transaction of somebody else has written parameters, jobs or workers, as neutralising does."""
    cr.execute(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'RowExclusiveLock' AND granted AND pid != pg_backend_pid()"
        "   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        f"  AND relation IN ({_HOME_TABLES}))"
    )
    return cr.fetchone()[0]


def has_unfinished_jobs(cr):
    """Whether any job has not ended. Indexes: queue_job_waiting_idx, queue_job_running_idx."""
    cr.execute(
        "SELECT EXISTS (SELECT FROM queue_job WHERE state IN ('waiting', 'pending'))"
        " OR EXISTS (SELECT FROM queue_job WHERE state = 'started')"
    )
    return cr.fetchone()[0]


def unfinished_jobs(cr, count, before_uuid):
    """Some of the jobs that have not ended, ``count`` at least if there are as many.

    Indexes: queue_job_waiting_idx, queue_job_running_idx.

    :param bool before_uuid: only those from before the database got its ``database.uuid``: by the clock, and, where
        another server's clock or a parameter written by SQL would mislead, by the transaction that wrote the row
    """
    condition = "(job.create_date < uuid.write_date OR age(job.xmin) > age(uuid.xmin))" if before_uuid else "true"
    parts = (
        f"(SELECT job.id FROM queue_job job, ir_config_parameter uuid WHERE {states} AND uuid.key = 'database.uuid'"
        f" AND {condition} LIMIT %(count)s)"
        for states in ("job.state IN ('waiting', 'pending')", "job.state = 'started'")
    )
    cr.execute(" UNION ALL ".join(parts), {"count": count})
    return [row[0] for row in cr.fetchall()]


def forget_workers(cr):
    """Remove the rows of all workers."""
    cr.execute("DELETE FROM queue_worker")


# --- housekeeping ----------------------------------------------------------------------------------------------------


def expired_jobs(cr, retention_days, after, count):
    """The next jobs, from the oldest on, that ended longer ago than they are kept.

    Indexes: queue_job_ended_idx, then by key, graph_uuid, parent_id and the relation's (dependency_id). Each graph is
    looked at once, whatever the statistics say.

    :param dict retention_days: by state; jobs of other states are kept for ever
    :param after: ``(ended, id)`` of the last one that was looked at, or ``None``
    :return: ``(id, ended, whether an unfinished job still needs it)`` of each
    """
    ended = "COALESCE(completed_at, cancelled_at)"
    by_state = " UNION ALL ".join(
        f"""(SELECT id, graph_uuid, {ended} AS ended FROM queue_job
              WHERE state = '{state}' AND ({ended}, id) > (%(ended)s, %(id)s)
                AND {ended} < (now() AT TIME ZONE 'UTC') - make_interval(days => {int(days)})
              ORDER BY {ended}, id LIMIT %(count)s)"""
        for state, days in retention_days.items()
    )
    last_ended, last_id = after or ("-infinity", 0)
    cr.execute(set_local({"enable_seqscan": "off", "enable_bitmapscan": "off"}))
    cr.execute(
        f"""
        WITH old AS MATERIALIZED (SELECT * FROM ({by_state}) ended ORDER BY ended, id LIMIT %(count)s
        ), live AS MATERIALIZED (
            SELECT graph_uuid FROM (SELECT DISTINCT graph_uuid FROM old WHERE graph_uuid IS NOT NULL) graph
             WHERE EXISTS (SELECT FROM queue_job WHERE queue_job.graph_uuid = graph.graph_uuid AND state IN {ACTIVE}
                           OFFSET 0)
        )
        SELECT id, ended,
               graph_uuid IS NOT NULL AND graph_uuid IN (SELECT graph_uuid FROM live)
               OR EXISTS (SELECT FROM queue_job child WHERE parent_id = old.id AND state IN {ACTIVE} OFFSET 0)
               OR EXISTS (SELECT FROM queue_job_dependency_rel JOIN queue_job child ON child.id = job_id
                           WHERE dependency_id = old.id AND state IN {ACTIVE} OFFSET 0)
          FROM old ORDER BY ended, id
        """,
        {"ended": last_ended, "id": last_id, "count": count},
    )
    return cr.fetchall()


def delete_jobs(cr, ids):
    """Delete jobs that nobody is changing, or storing others behind; by key.

    :return: how many were deleted
    :raise psycopg2.DatabaseError: something refuses it, a foreign key of another addon for example
    """
    cr.execute(
        "DELETE FROM queue_job"
        " WHERE id = ANY(ARRAY(SELECT id FROM queue_job WHERE id = ANY(%s) FOR UPDATE SKIP LOCKED))",
        (list(ids),),
        log_exceptions=False,
    )
    return cr.rowcount


MAX_ID = 2**31 - 1


def ids_used(cr):
    """What share of its ids each table has used up that grows with the jobs, unless it was widened to 64 bits.

    :return: ``{table: share}``
    """
    cr.execute(
        """
        SELECT relation, last_value::float / %s
          FROM unnest(ARRAY['queue_job', 'queue_job_attempt', 'queue_job_progress']) relation
          JOIN pg_sequences ON schemaname = current_schema() AND sequencename = relation || '_id_seq'
          JOIN pg_attribute ON attrelid = to_regclass(relation) AND attname = 'id' AND atttypid = 'int4'::regtype
         WHERE last_value IS NOT NULL
        """,
        (MAX_ID,),
    )
    return dict(cr.fetchall())


def latest_files(cr, count):
    """Names of the files of the latest attachments, by key; in storages of other addons they are called otherwise."""
    cr.execute(
        "SELECT store_fname FROM ir_attachment WHERE id > (SELECT max(id) FROM ir_attachment) - 1000"
        " AND store_fname ~ '^[0-9a-f]{2}/[0-9a-f]{40}$' ORDER BY id DESC LIMIT %s",
        (count,),
    )
    return [row[0] for row in cr.fetchall()]


def own_databases(cr, excluded):
    """Names of the databases of the cursor's role that can be connected to, but for those ``excluded``, in order."""
    cr.execute(
        "SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = current_user AND NOT datistemplate"
        " AND datallowconn AND datname <> ALL(%s) ORDER BY datname",
        (list(excluded),),
    )
    return [name for (name,) in cr.fetchall()]


def connection_limit(cr):
    """How many connections the server, the role and the database allow altogether."""
    cr.execute(
        "SELECT least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
        " NULLIF(rolconnlimit, -1), NULLIF(datconnlimit, -1)) FROM pg_roles CROSS JOIN pg_database"
        " WHERE rolname = current_user AND datname = current_database()"
    )
    return cr.fetchone()[0]


def addon_is_installed(cr):
    """Whether the addon is installed in the cursor's database, which may not be one of Odoo's at all."""
    cr.execute("SELECT to_regclass('ir_module_module') IS NOT NULL AND to_regclass('queue_worker') IS NOT NULL")
    if not cr.fetchone()[0]:
        return False
    cr.execute("SELECT FROM ir_module_module WHERE name = 'job_worker' AND state IN ('installed', 'to upgrade')")
    return bool(cr.rowcount)


# --- progress --------------------------------------------------------------------------------------------------------


_INSERT_PROGRESS = f"""
INSERT INTO queue_job_progress (job_id, claim_seq, done, total, message, updated_at)
SELECT id, claim_seq, %(done)s, %(total)s, %(message)s, {NOW} FROM queue_job
 WHERE state = 'started' AND uuid = %(uuid)s
    ON CONFLICT (job_id) DO UPDATE SET claim_seq = excluded.claim_seq, done = excluded.done, total = excluded.total,
       message = excluded.message, updated_at = excluded.updated_at
RETURNING job_id, claim_seq
"""
_UPDATE_PROGRESS = f"""
UPDATE queue_job_progress progress
   SET done = %(done)s, total = %(total)s, message = %(message)s, updated_at = {NOW}
  FROM queue_job job
 WHERE job_id = %(id)s AND progress.claim_seq = %(claim_seq)s AND job.id = job_id AND job.claim_seq = %(claim_seq)s
RETURNING job_id, progress.claim_seq
"""


def write_progress(cr, job_uuid, attempt, done, total, message):
    """Write how far a running attempt has come; the first time through queue_job_running_idx, then by key.

    Called on a connection of its own: nothing here waits for a lock longer than a moment, or for the disk.

    :param str job_uuid: the job
    :param attempt: what the previous call for the same attempt returned, or ``None``
    :return: the attempt, as ``(job id, claim_seq)``, or ``None`` if the job is not seen running
    """
    cr.execute("SET LOCAL lock_timeout = '200ms'; SET LOCAL synchronous_commit = off")
    job_id, claim_seq = attempt or (None, None)
    # An insert would draw an id each time, also where it meets a row: twice a second for each job, of 2^31 there are.
    cr.execute(
        _UPDATE_PROGRESS if attempt else _INSERT_PROGRESS,
        {"id": job_id, "claim_seq": claim_seq, "uuid": job_uuid, "done": done, "total": total, "message": message},
        log_exceptions=False,
    )
    return cr.fetchone()


def progress_of(cr, ids):
    """Progress of the latest attempts of jobs; by key and queue_job_progress's (job_id).

    :return: ``{job id: (done, total, message, updated_at)}``
    """
    cr.execute(
        "SELECT job_id, done, total, message, updated_at FROM queue_job_progress progress"
        "  JOIN queue_job job ON job.id = job_id AND job.claim_seq = progress.claim_seq WHERE job_id = ANY(%s)",
        (list(ids),),
    )
    return {job_id: values for job_id, *values in cr.fetchall()}


# --- display ---------------------------------------------------------------------------------------------------------


def record_ids_of(cr, ids):
    """What the payloads of jobs have as ids of records, without the rest of them; by key."""
    cr.execute("SELECT id, payload->'ids' FROM queue_job WHERE id = ANY(%s)", (list(ids),))
    return dict(cr.fetchall())


def json_texts(cr, ids, column, characters):
    """The beginning of the payloads or results of jobs, as text; by key.

    :param str column: ``"payload"`` or ``"result"``
    :return: ``{job id: (text, length of the whole)}`` of those that have one
    """
    cr.execute(
        SQL(
            "SELECT id, left(whole.text, %s), length(whole.text)"
            " FROM queue_job CROSS JOIN LATERAL (SELECT %s::text AS text OFFSET 0) whole"
            " WHERE id = ANY(%s) AND whole.text IS NOT NULL",
            characters,
            SQL.identifier(column),
            list(ids),
        )
    )
    return {job_id: texts for job_id, *texts in cr.fetchall()}


def argument_texts(cr, ids, count, characters, recordset, record_ids):
    """The first arguments of jobs, and the beginning of each, as JSON; by key.

    :param dict recordset: what tells a recordset from other values
    :param int record_ids: how many ids of a recordset to keep
    :return: ``(job id, name or None, text, length of the whole)`` of each
    """
    cr.execute(
        """
        SELECT job.id, argument.name, left(whole.text, %(characters)s), length(whole.text)
          FROM queue_job job
         CROSS JOIN LATERAL (
               SELECT NULL AS name, value, place FROM jsonb_array_elements(
                   CASE jsonb_typeof(payload->'args') WHEN 'array' THEN payload->'args' END
               ) WITH ORDINALITY positional(value, place)
               UNION ALL
               SELECT key, value, place FROM jsonb_each(
                   CASE jsonb_typeof(payload->'kwargs') WHEN 'object' THEN payload->'kwargs' END
               ) WITH ORDINALITY named(key, value, place)
               LIMIT %(count)s
               ) argument
         CROSS JOIN LATERAL (
               SELECT (CASE WHEN value @> %(recordset)s
                       THEN value || jsonb_build_object('ids', jsonb_path_query_array(value, %(shown_ids)s))
                       ELSE value END)::text OFFSET 0
               ) whole(text)
         WHERE job.id = ANY(%(ids)s)
         ORDER BY argument.name IS NOT NULL, argument.place
        """,
        {
            "ids": list(ids),
            "count": count,
            "characters": characters,
            "recordset": json.dumps(recordset),
            "shown_ids": f"$.ids[0 to {record_ids - 1}]",
        },
    )
    return cr.fetchall()


def jobs_with_children(cr, ids):
    """Of ``ids``, those that other jobs wait for; indexes: parent_id, the relation's (dependency_id)."""
    cr.execute(
        "SELECT parent_id FROM queue_job WHERE parent_id = ANY(%(ids)s)"
        " UNION SELECT dependency_id FROM queue_job_dependency_rel WHERE dependency_id = ANY(%(ids)s)",
        {"ids": list(ids)},
    )
    return {row[0] for row in cr.fetchall()}


def graph_around(cr, job_id, count):
    """The jobs connected with a job, and those stored with it, the nearest first; by key, parent_id, graph_uuid and the
    relation's indexes.

    :param int count: jobs to return at most
    :return: ``({job id: state}, [(parent ids, ids of the jobs that wait for all of them)])``
    """
    cr.execute(
        """
        WITH RECURSIVE near(id) AS (
            SELECT %(id)s::bigint
            UNION
            SELECT edge.id FROM near CROSS JOIN LATERAL (
                SELECT parent_id AS id FROM queue_job WHERE id = near.id AND parent_id IS NOT NULL
                UNION ALL SELECT id FROM queue_job WHERE parent_id = near.id
                UNION ALL SELECT dependency_id FROM queue_job_dependency_rel WHERE job_id = near.id
                UNION ALL SELECT job_id FROM queue_job_dependency_rel WHERE dependency_id = near.id) edge
        ), node AS (
            (SELECT id FROM near LIMIT %(count)s)
            UNION
            (SELECT id FROM queue_job WHERE graph_uuid = (SELECT graph_uuid FROM queue_job WHERE id = %(id)s)
              ORDER BY id LIMIT %(count)s)
        )
        SELECT id, state FROM queue_job WHERE id IN (SELECT id FROM node) ORDER BY id LIMIT %(count)s
        """,
        {"id": job_id, "count": count},
    )
    states = dict(cr.fetchall())
    cr.execute(
        """
        SELECT parents, array_agg(child_id ORDER BY child_id)
          FROM (SELECT child_id, array_agg(parent_id ORDER BY parent_id) AS parents
                  FROM (SELECT id AS child_id, parent_id FROM queue_job
                         WHERE id = ANY(%(ids)s) AND parent_id = ANY(%(ids)s)
                        UNION
                        SELECT job_id, dependency_id FROM queue_job_dependency_rel
                         WHERE job_id = ANY(%(ids)s) AND dependency_id = ANY(%(ids)s)) edge
                 GROUP BY child_id) child
         GROUP BY parents ORDER BY parents
        """,
        {"ids": list(states)},
    )
    return states, cr.fetchall()


# --- dashboard -------------------------------------------------------------------------------------------------------
#
# What people see of the queue. ``jobs`` is the query of the jobs they may see (``queue.job._search([])``): its rules
# are part of every statement. Backlogs are looked at up to a bound; where that cuts off, numbers are "at least". The
# bound is on the rows looked at, not on those that pass the rules, so that it holds for who sees few of many jobs,
# too. The time is that of the transaction, as a constant: only so the planner knows how little "since a second ago"
# is. Plans with a million jobs: docs/dashboard-queries.md.

COUNT_LIMIT = 10_000
LATEST_LIMIT = 5_000
_BACKLOG_ROWS = 10_000
_DUE_SINCE = SQL("COALESCE(scheduled_at, create_date)")
_ENDED_AT = SQL("COALESCE(completed_at, cancelled_at)")


def prepare_ended_statistics(cr):
    """Let ``ANALYZE`` tell the planner how many jobs ended when.

    It takes no statistics from partial indexes, and would walk through the whole table for the few jobs of the last
    hour. PostgreSQL 13 can't keep any of expressions.
    """
    if cr.connection.server_version >= 140000:
        cr.execute(
            "CREATE STATISTICS IF NOT EXISTS queue_job_ended_stats ON (COALESCE(completed_at, cancelled_at))"
            " FROM queue_job"
        )


def ended_at(alias, operator, value):
    """Condition on when jobs ended, that queue_job_ended_idx serves.

    :rtype: SQL
    """
    columns = SQL.identifier(alias, "completed_at"), SQL.identifier(alias, "cancelled_at")
    return SQL("COALESCE(%s, %s) %s %s", *columns, SQL(operator), value)


def _visible(jobs):
    return jobs.where_clause or SQL("TRUE")


def among_latest(alias):
    """Condition for the latest 5,000 jobs of each state, of anybody's; indexes: queue_job_running_idx,
    queue_job_waiting_idx, queue_job_ended_idx, then by key.

    As an array, because the planner takes any array for short: so it never prefers to walk through the whole table in
    the order that is asked for.

    :rtype: SQL
    """
    order = {STARTED: SQL("claim_seq"), WAITING: SQL("id"), PENDING: SQL("id")}
    latest = [
        SQL(
            "(SELECT id FROM queue_job WHERE state = %s ORDER BY %s DESC LIMIT %s)",
            SQL(f"'{state}'"),  # a parameter would hide from the planner that the partial index fits
            order.get(state, _ENDED_AT),
            LATEST_LIMIT,
        )
        for state, _label in STATES
    ]
    return SQL("%s = ANY(ARRAY(%s))", SQL.identifier(alias, "id"), SQL(" UNION ALL ").join(latest))


def backlog_by_channel(cr, jobs, overdue_seconds):
    """Jobs that are due, by channel: up to 10,000 of each, fewer where channels are many; index: queue_job_claim_idx.

    :return: ``(channel, count, whether there may be more, seconds the oldest has waited, overdue)`` of each
    """
    rules = _visible(jobs)
    cr.execute(
        SQL(
            """
            WITH RECURSIVE known(name) AS (
                (SELECT channel FROM queue_job WHERE state = 'pending' AND is_due ORDER BY channel LIMIT 1)
                UNION ALL
                SELECT next.channel FROM known CROSS JOIN LATERAL (
                    SELECT channel FROM queue_job WHERE state = 'pending' AND is_due AND channel > known.name
                     ORDER BY channel LIMIT 1) next
            ), bound AS (
                SELECT greatest(least(%(rows)s / greatest(count(*), 1), %(limit)s) / 1000 * 1000, 1000) AS rows FROM
                known
            )
            SELECT name, visible, looked_at = rows, oldest, overdue
              FROM known CROSS JOIN bound CROSS JOIN LATERAL (
                   WITH queue_job AS (SELECT * FROM queue_job WHERE state = 'pending' AND is_due AND channel =
                   known.name
                                       LIMIT bound.rows)
                   SELECT count(*) AS looked_at,
                          count(*) FILTER (WHERE %(rules)s) AS visible,
                          extract(epoch FROM %(now)s - min(%(since)s) FILTER (WHERE %(rules)s))::float AS oldest,
                          count(*) FILTER (WHERE %(rules)s
                                             AND %(since)s < %(now)s - make_interval(secs => %(late)s)) AS overdue
                     FROM %(jobs)s) backlog
             WHERE visible > 0
            """,
            rows=_BACKLOG_ROWS,
            limit=COUNT_LIMIT,
            rules=rules,
            now=cr.now(),
            since=_DUE_SINCE,
            late=overdue_seconds,
            jobs=jobs.from_clause,
        )
    )
    return cr.fetchall()


def scheduled_by_channel(cr, jobs, overdue_seconds):
    """Jobs with a schedule that no worker has taken note of yet, by channel; index: queue_job_due_idx.

    :return: ``(channel, due by now, to come, whether there may be more, seconds the oldest has waited, overdue)`` of
        each
    """
    cr.execute(
        SQL(
            """
            WITH queue_job AS (SELECT * FROM queue_job WHERE state = 'pending' AND NOT is_due
                                ORDER BY scheduled_at LIMIT %(limit)s),
                 total AS (SELECT count(*) AS looked_at FROM queue_job)
            SELECT channel,
                   count(*) FILTER (WHERE scheduled_at <= %(now)s),
                   count(*) FILTER (WHERE scheduled_at > %(now)s),
                   (SELECT looked_at >= %(limit)s FROM total),
                   greatest(extract(epoch FROM %(now)s - min(scheduled_at)), 0)::float,
                   count(*) FILTER (WHERE scheduled_at < %(now)s - make_interval(secs => %(late)s))
              FROM %(jobs)s WHERE %(rules)s
             GROUP BY channel
            """,
            limit=COUNT_LIMIT,
            now=cr.now(),
            late=overdue_seconds,
            jobs=jobs.from_clause,
            rules=_visible(jobs),
        )
    )
    return cr.fetchall()


def running_by_channel(cr, jobs, grace_seconds):
    """Running jobs by channel, and those of them that seem stuck: their worker gives no sign of life, or they are
    ``grace_seconds`` over their timeout; index: queue_job_running_idx.

    :return: ``(channel, count, ids of the stuck ones or None)`` of each
    """
    cr.execute(
        SQL(
            """
            SELECT channel, count(*), array_agg("queue_job".id) FILTER (WHERE
                   (worker_id IS NOT NULL AND NOT EXISTS (
                       SELECT FROM queue_worker worker WHERE worker.name = worker_id AND %(is_alive)s))
                   OR (timeout > 0 AND started_at + make_interval(secs => timeout + %(grace)s) < %(now)s))
              FROM %(jobs)s WHERE state = 'started' AND %(rules)s
             GROUP BY channel
            """,
            grace=grace_seconds,
            is_alive=SQL(_IS_ALIVE),
            now=cr.now(),
            jobs=jobs.from_clause,
            rules=_visible(jobs),
        )
    )
    return cr.fetchall()


def _count_up_to_limit(cr, jobs, condition):
    """Count visible jobs among the first 10,000 that meet a condition.

    :return: ``(count, whether there may be more)``
    """
    cr.execute(
        SQL(
            """
            WITH queue_job AS (SELECT * FROM queue_job WHERE %s LIMIT %s)
            SELECT count(*) FILTER (WHERE %s), count(*) >= %s FROM %s
            """,
            condition,
            COUNT_LIMIT,
            _visible(jobs),
            COUNT_LIMIT,
            jobs.from_clause,
        )
    )
    return cr.fetchone()


def count_waiting(cr, jobs):
    """Jobs that wait for others: ``(count, whether there may be more)``; index: queue_job_waiting_idx."""
    return _count_up_to_limit(cr, jobs, SQL("state = 'waiting'"))


def count_failed(cr, jobs):
    """Failed jobs: ``(count, whether there may be more)``; index: queue_job_ended_idx."""
    return _count_up_to_limit(cr, jobs, SQL("state = 'failed'"))


def count_poison(cr, jobs):
    """Jobs in whose attempts a worker died and that have not succeeded; index: queue_job_attempt_died_idx, then by key.

    :return: ``(count, whether there may be more)``
    """
    return _count_up_to_limit(
        cr,
        jobs,
        SQL(
            "id IN (SELECT job_id FROM queue_job_attempt WHERE outcome = 'died')"
            " AND state IN ('waiting', 'pending', 'started', 'failed')"
        ),
    )


def ends_by_bucket(cr, jobs, begin, step_seconds, buckets):
    """Jobs done and failed in each of a row of equal spans of time, of which the last one is open: what ends while this
    is asked belongs there. Index: queue_job_ended_idx, without the table.

    :param begin: naive UTC
    :return: ``(number of the span, done, failed)`` of each
    """

    def ended(state):
        return SQL(
            "(SELECT count(*) FROM %(jobs)s WHERE %(rules)s AND state = %(state)s AND %(at)s >= span.begin"
            " AND %(at)s < CASE WHEN number < %(last)s THEN span.begin + make_interval(secs => %(step)s)"
            " ELSE 'infinity' END)",
            jobs=jobs.from_clause,
            rules=_visible(jobs),
            state=SQL(f"'{state}'"),  # a parameter would hide from the planner that the partial index fits
            at=_ENDED_AT,
            step=step_seconds,
            last=buckets - 1,
        )

    cr.execute(
        SQL(
            """
            SELECT number, %(done)s, %(failed)s
              FROM (SELECT number, %(begin)s + number * make_interval(secs => %(step)s) AS begin
                      FROM generate_series(0, %(last)s) number) span
            """,
            done=ended("done"),
            failed=ended("failed"),
            begin=begin,
            step=step_seconds,
            last=buckets - 1,
        )
    )
    return cr.fetchall()


def latency(cr, jobs, begin, sample):
    """Medians and 95th percentiles, in seconds, of the latest ``sample`` jobs that were done since ``begin``.

    They are sought among the latest 10,000. Jobs that had to wait for others count for their run time only; index:
    queue_job_ended_idx.

    :return: ``(jobs found, wait p50, wait p95, run p50, run p95)``
    """
    cr.execute(
        SQL(
            """
            WITH queue_job AS (SELECT * FROM queue_job WHERE state = 'done' AND %(at)s >= %(begin)s
                                ORDER BY %(at)s DESC LIMIT %(limit)s)
            SELECT count(*),
                   percentile_cont(0.5) WITHIN GROUP (ORDER BY wait), percentile_cont(0.95) WITHIN GROUP (ORDER BY
                   wait), percentile_cont(0.5) WITHIN GROUP (ORDER BY run), percentile_cont(0.95) WITHIN GROUP (ORDER
                   BY run)
              FROM (SELECT duration AS run,
                           CASE WHEN parent_id IS NULL AND NOT EXISTS (
                                     SELECT FROM queue_job_dependency_rel WHERE job_id = "queue_job".id)
                                THEN greatest(extract(epoch FROM started_at - %(since)s)::float, 0) END AS wait
                      FROM %(jobs)s
                     WHERE %(rules)s AND duration IS NOT NULL
                     ORDER BY %(at)s DESC LIMIT %(sample)s) latest
            """,
            since=_DUE_SINCE,
            jobs=jobs.from_clause,
            rules=_visible(jobs),
            at=_ENDED_AT,
            begin=begin,
            limit=COUNT_LIMIT,
            sample=sample,
        )
    )
    return cr.fetchone()


def ends_by_channel(cr, jobs, seconds):
    """Jobs done and failed in the last ``seconds``, by channel; of more than 10,000 done, the time the latest 10,000
    took; index: queue_job_ended_idx, without the table.

    :return: ``(channel, done, failed)`` of each
    """
    cr.execute(
        SQL(
            """
            SELECT channel, count(*) FILTER (WHERE state = 'done'), count(*) FILTER (WHERE state = 'failed')
              FROM %(jobs)s
             WHERE %(rules)s AND state IN ('done', 'failed') AND %(at)s >= greatest(
                   %(begin)s,
                   (SELECT %(at)s FROM queue_job WHERE state = 'done' AND %(at)s IS NOT NULL
                     ORDER BY %(at)s DESC OFFSET %(limit)s LIMIT 1))
             GROUP BY channel
            """,
            jobs=jobs.from_clause,
            rules=_visible(jobs),
            at=_ENDED_AT,
            begin=cr.now() - timedelta(seconds=seconds),
            limit=COUNT_LIMIT,
        )
    )
    return cr.fetchall()


def starts_by_channel(cr, jobs):
    """Jobs started in the last second, by channel; indexes: queue_job_running_idx, queue_job_ended_idx."""
    second_ago = cr.now() - timedelta(seconds=1)
    # The planner does not know how few ended so recently: the order makes it take the index.
    cr.execute(
        SQL(
            """
            WITH queue_job AS (
                (SELECT * FROM queue_job %(ended)s AND state = 'done' ORDER BY %(at)s DESC LIMIT %(limit)s)
                UNION ALL
                (SELECT * FROM queue_job %(ended)s AND state = 'failed' ORDER BY %(at)s DESC LIMIT %(limit)s)
                UNION ALL
                SELECT * FROM queue_job WHERE state = 'started'
            )
            SELECT channel, count(*) FROM %(jobs)s WHERE %(rules)s AND started_at > %(ago)s GROUP BY channel
            """,
            ended=SQL("WHERE %s > %s", _ENDED_AT, second_ago),
            at=_ENDED_AT,
            limit=COUNT_LIMIT,
            jobs=jobs.from_clause,
            rules=_visible(jobs),
            ago=second_ago,
        )
    )
    return dict(cr.fetchall())


def slots_taken(cr):
    """Map names of workers to the number of jobs they have claimed; index: queue_job_running_idx."""
    cr.execute("SELECT worker_id, count(*) FROM queue_job WHERE state = 'started' GROUP BY worker_id")
    return dict(cr.fetchall())


def error_groups(jobs):
    """Failed jobs by what failed; index: queue_job_error_group_idx, without the table.

    :return: a query of the columns of ``queue.error.group``
    :rtype: SQL
    """
    return SQL(
        """
        SELECT failed.id, failed.last_job_id, failed.jobs, failed.first_seen, failed.last_seen, job.model_name,
               job.method_name, job.error_class, job.error_place
          FROM (SELECT min("queue_job".id) AS id, max("queue_job".id) AS last_job_id, count(*) AS jobs,
                       min(completed_at) AS first_seen, max(completed_at) AS last_seen
                  FROM %s WHERE state = 'failed' AND %s
                 GROUP BY error_group) failed
          JOIN queue_job job ON job.id = failed.last_job_id
        """,
        jobs.from_clause,
        _visible(jobs),
    )
