"""Every SQL statement of the engine, by name; state changes are in :mod:`.lifecycle`.

The functions take a cursor of Odoo or of psycopg2. Each statement names the index that serves it; "by key" is the
primary key.
"""

from datetime import datetime

from .lifecycle import ACTIVE, ENDED, NOW, TRANSITIONS

# The order of claims: as queue_job_claim_idx has it.
_RANK = "COALESCE(scheduled_at, '-infinity'::timestamp)"
_CLAIMABLE = "state = 'pending' AND is_due"
_LOCK_SPACE = 0x6A6F62  # "job": first key of our advisory locks

# --- storing ---------------------------------------------------------------------------------------------------------

_INSERT_COLUMNS = (
    "id", "uuid", "name", "state", "payload", "channel", "priority", "identity_key", "user_id", "company_id",
    "scheduled_at", "is_due", "attempts", "max_retries", "timeout", "parent_id", "graph_uuid", "run_on_failure",
    "model_name", "method_name", "cancel_requested", "database_failures", "create_uid", "create_date", "write_uid",
    "write_date",
)  # fmt: skip
_NOW_IN_TRANSACTION = "(now() AT TIME ZONE 'UTC')"
_INSERT_ROW = (
    "({id}, %s, %s, %s, %s, %s, %s, %s, %s, %s, {scheduled_at}, {is_due}, 0, %s, %s, %s, %s, %s, %s, %s, false, 0,"
    f" %s, {_NOW_IN_TRANSACTION}, %s, {_NOW_IN_TRANSACTION}"
)
# Does nothing where the key is taken by a job this transaction sees, fails to serialise where it does not see it.
_ON_IDENTITY_CONFLICT = (
    " ON CONFLICT (identity_key) WHERE identity_key IS NOT NULL AND state IN ('waiting', 'pending', 'started') DO NOTHING"
)


def reserve_job_ids(cr, count):
    """Draw ``count`` ids for jobs to be inserted, in ascending order."""
    cr.execute("SELECT nextval('queue_job_id_seq') FROM generate_series(1, %s)", (count,))
    return sorted(row[0] for row in cr.fetchall())


def insert_jobs(cr, rows):
    """Insert jobs and the dependencies among them in two statements at most.

    :param rows: dicts as :meth:`QueueJob._job_values` makes them, with their place in the graph
    :return: ids of the inserted jobs; fewer than rows where an identity key is taken
    """
    extra_columns = sorted({name for row in rows for name in row.get("extra", ())})
    tuples, params = [], []
    for row in rows:
        job_sql, job_params = _insert_row(row, extra_columns)
        tuples.append(job_sql)
        params += job_params
    columns = ", ".join(f'"{name}"' for name in (*_INSERT_COLUMNS, *extra_columns))
    keyed = any(row["identity_key"] for row in rows)
    cr.execute(
        f"INSERT INTO queue_job ({columns}) VALUES {', '.join(tuples)}"
        f"{_ON_IDENTITY_CONFLICT if keyed else ''} RETURNING id",
        params,
    )
    ids = [row[0] for row in cr.fetchall()]
    if len(ids) == len(rows):
        edges = [(job_id, parent) for job_id, row in zip(ids, rows, strict=True) for parent in row["dependency_job_ids"]]
        if edges:
            cr.execute(
                "INSERT INTO queue_job_dependency_rel (job_id, dependency_id) SELECT * FROM unnest(%s::int[], %s::int[])",
                tuple(map(list, zip(*edges, strict=True))),
            )
    return ids


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
    params += [row["model_name"], row["method_name"], row["create_uid"], row["create_uid"]]
    sql = _INSERT_ROW.format(id=job_id, scheduled_at=scheduled_at, is_due=is_due)
    for name in extra_columns:
        extra = row.get("extra", {})
        sql += ", %s" if name in extra else ", DEFAULT"
        params += [extra[name]] if name in extra else []
    return sql + ")", params


def active_jobs_by_identity(cr, keys):
    """Map identity keys to the ids of the active jobs that have them; index: queue_job_identity_idx."""
    cr.execute(
        "SELECT identity_key, id FROM queue_job WHERE identity_key = ANY(%s) AND identity_key IS NOT NULL"
        " AND state IN ('waiting', 'pending', 'started')",
        (list(keys),),
    )
    return dict(cr.fetchall())


# --- graphs ----------------------------------------------------------------------------------------------------------


def children_of(cr, ids):
    """Ids of the jobs that wait, or waited, for any of ``ids``; indexes: parent_id, the relation's (dependency_id)."""
    cr.execute(
        "SELECT id FROM queue_job WHERE parent_id = ANY(%(ids)s)"
        " UNION SELECT job_id FROM queue_job_dependency_rel WHERE dependency_id = ANY(%(ids)s)",
        {"ids": list(ids)},
    )
    return [row[0] for row in cr.fetchall()]


def undecided_with_parents(cr, ids):
    """Of ``ids``, the jobs whose state their parents may still decide, with the states of these parents; by key.

    :return: ``(id, state, run_on_failure, {parent state: lowest parent id})`` of each
    """
    cr.execute(
        """
        SELECT child.id, child.state, child.run_on_failure, jsonb_object_agg(parent.state, parent.id)
          FROM queue_job child
         CROSS JOIN LATERAL (
               SELECT job.state, min(job.id) AS id
                 FROM (SELECT child.parent_id AS id
                       UNION ALL
                       SELECT dependency_id FROM queue_job_dependency_rel WHERE job_id = child.id) edge
                 JOIN queue_job job ON job.id = edge.id
                GROUP BY job.state
               ) parent
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
    cr.execute(
        "SELECT id FROM queue_job WHERE state = 'waiting' AND id > %s ORDER BY id LIMIT %s", (after_id, count)
    )
    return [row[0] for row in cr.fetchall()]


# --- claiming --------------------------------------------------------------------------------------------------------

# Starts a throttled channel may have in a window: for less than one a second, the window grows instead. The 20 ms more
# than the second cover the way from the claim to the job's first line.
_RATE_CAP = "greatest(floor(rate_limit), 1)"
_RATE_WINDOW = "make_interval(secs => greatest(1, 1 / nullif(rate_limit, 0)) + 0.02)"
_RECENT_STARTS = f"(SELECT count(*) FROM unnest(starts) start WHERE start > {NOW} - {_RATE_WINDOW})"

# One row: seconds until something becomes due, channels locked for claiming, whether another worker holds one of them.
# The heads of the channels, found by skipping from channel to channel through queue_job_claim_idx, are enough to know
# which channels the best jobs are in. Running jobs are counted in queue_job_running_idx, and counted again once the
# channel is locked. next_due: queue_job_due_idx.
_OPEN_CHANNELS = f"""
WITH RECURSIVE head AS (
    (SELECT channel, priority, {_RANK} AS rank, id FROM queue_job WHERE {_CLAIMABLE}
      ORDER BY channel, priority, {_RANK}, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM head CROSS JOIN LATERAL (
        SELECT channel, priority, {_RANK}, id FROM queue_job WHERE {_CLAIMABLE} AND channel > head.channel
         ORDER BY channel, priority, {_RANK}, id LIMIT 1) next
), candidate AS (
    SELECT best.channel, COALESCE(rate_limit, 0) AS rate_limit, starts
      FROM (SELECT * FROM head ORDER BY priority, rank, id OFFSET 0) best
      LEFT JOIN queue_limit ON queue_limit.name = best.channel
      LEFT JOIN queue_limit_starts ON limit_id = queue_limit.id
     WHERE COALESCE("limit", 1) > (
           SELECT count(*) FROM queue_job running WHERE running.state = 'started' AND running.channel = best.channel)
), open AS (
    SELECT channel, throttled, pg_try_advisory_xact_lock({_LOCK_SPACE}, hashtext(channel)) AS locked
      FROM (SELECT channel, rate_limit > 0 AS throttled FROM candidate WHERE rate_limit = 0 OR COALESCE({_RECENT_STARTS}, 0) < {_RATE_CAP}
             LIMIT %(count)s) free
)
SELECT extract(epoch FROM least(
           (SELECT min(scheduled_at) FROM queue_job WHERE state = 'pending' AND NOT is_due),
           (SELECT min(starts[greatest(array_length(starts, 1) - {_RATE_CAP}::int + 1, 1)] + {_RATE_WINDOW})
              FROM candidate WHERE rate_limit > 0 AND {_RECENT_STARTS} >= {_RATE_CAP})
       ) - {NOW})::float,
       ARRAY(SELECT channel FROM open WHERE locked),
       ARRAY(SELECT channel FROM open WHERE locked AND throttled),
       EXISTS (SELECT FROM open WHERE NOT locked),
       EXISTS (SELECT FROM queue_worker WHERE name = %(worker_id)s AND state != 'dead'),
       EXISTS (SELECT FROM ir_module_module WHERE state IN ('to install', 'to upgrade', 'to remove'))
"""


def open_channels(cr, worker_id, count):
    """Lock the channels that the best ``count`` jobs are in, without waiting, until the end of the transaction.

    Whoever holds a channel's lock is the only one that claims in it. The count of its running jobs is right only in a
    statement that begins after the lock was taken, at READ COMMITTED: :func:`claim`.

    :return: ``(seconds until a scheduled job or a throttled channel is due or None, locked channels, those of them that
        are throttled, whether another worker held one, whether this worker still counts as alive, whether modules are being installed or upgraded)``
    """
    cr.execute(_OPEN_CHANNELS, {"worker_id": worker_id, "count": count})
    return cr.fetchone()


# The seats of each locked channel, the best jobs that fit in them, then the rows themselves, unless somebody is changing
# them. Index: queue_job_claim_idx, from its first live entry in each channel.
_CLAIM = f"""
WITH channel AS (
    SELECT locked.name, COALESCE(rate_limit, 0) AS rate_limit,
           COALESCE("limit", 1) - (SELECT count(*) FROM queue_job running
                                    WHERE running.state = 'started' AND running.channel = locked.name) AS seats,
           CASE WHEN rate_limit > 0 THEN {_RATE_CAP} - COALESCE({_RECENT_STARTS}, 0) ELSE %(count)s END AS starts_left
      FROM unnest(%(channels)s::text[]) locked(name)
      LEFT JOIN queue_limit ON queue_limit.name = locked.name
      LEFT JOIN queue_limit_starts ON limit_id = queue_limit.id
), best AS (
    SELECT job.id
      FROM channel
     CROSS JOIN LATERAL (
           SELECT id, priority, {_RANK} AS rank FROM queue_job WHERE {_CLAIMABLE} AND queue_job.channel = channel.name
            ORDER BY channel, priority, {_RANK}, id
            -- ahead of a free thread only where seats abound and starts are not counted
            LIMIT greatest(0, least(seats, starts_left,
                CASE WHEN rate_limit = 0 AND seats >= 4 * %(count)s THEN %(count)s ELSE %(free)s END))
           ) job
     ORDER BY job.priority, job.rank, job.id
     LIMIT %(count)s
), locked AS MATERIALIZED (
    SELECT id FROM queue_job WHERE id IN (SELECT id FROM best) AND state = 'pending'
     ORDER BY priority, {_RANK}, id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE queue_job job SET {TRANSITIONS['claim'].set_clause}
  FROM locked WHERE job.id = locked.id
RETURNING job.id, job.claim_seq, job.uuid, job.payload, job.user_id, job.company_id, job.channel, job.priority,
          job.attempts, job.max_retries, job.timeout, job.database_failures, job.exc_info,
          extract(epoch FROM {NOW} - job.create_date)::float AS age
"""


def claim(cr, worker_id, channels, free, count):
    """Start the best jobs of locked channels for a worker.

    :param channels: what :func:`open_channels` locked in this transaction
    :param int free: jobs the worker can run at once now
    :param int count: jobs to claim at most; what goes beyond ``free`` is claimed ahead
    :return: rows as :class:`~.worker.executor.Claim` takes them, in the order they were claimed
    """
    cr.execute(_CLAIM, {"worker_id": worker_id, "channels": channels, "free": free, "count": count})
    return sorted(cr.fetchall(), key=lambda row: row[1])


def record_starts(cr, channels):
    """Remember the starts just claimed in throttled channels; ``channels`` has one name for each start; by key."""
    cr.execute(
        f"""
        INSERT INTO queue_limit_starts AS known (limit_id, starts)
        SELECT id, array_agg({NOW}) FROM queue_limit JOIN unnest(%s::text[]) start(channel) ON name = start.channel
         WHERE rate_limit > 0 GROUP BY id
        ON CONFLICT (limit_id) DO UPDATE
           SET starts = (SELECT array_agg(start ORDER BY start) FROM unnest(known.starts || excluded.starts) start
                          WHERE start > {NOW} - (SELECT {_RATE_WINDOW} FROM queue_limit WHERE id = known.limit_id))
        """,
        (list(channels),),
    )


def mark_due(cr):
    """Make pending jobs claimable whose schedule has come; index: queue_job_due_idx.

    :return: how many there were
    """
    cr.execute(
        f"""
        UPDATE queue_job SET is_due = true
         WHERE id IN (SELECT id FROM queue_job WHERE state = 'pending' AND NOT is_due AND scheduled_at <= {NOW}
                       ORDER BY scheduled_at LIMIT 1000 FOR NO KEY UPDATE SKIP LOCKED)
        """
    )
    return cr.rowcount


def refresh_due(cr, ids):
    """After a change of the schedule of pending jobs: whether they are claimable now; by key."""
    cr.execute(
        f"UPDATE queue_job SET is_due = (scheduled_at IS NULL OR scheduled_at <= {NOW})"
        " WHERE id = ANY(%s) AND state = 'pending'",
        (list(ids),),
    )


# --- running ---------------------------------------------------------------------------------------------------------


def finish(cr, claim_seq, job_id, result, duration):
    """End an attempt as done, in the job's own transaction; by key.

    :return: whether jobs may wait for this one, or ``None`` if the attempt does not own the job any more
    """
    cr.execute(
        f"""
        UPDATE queue_job job SET {TRANSITIONS['finish'].set_clause}
         WHERE id = %(id)s AND state = 'started' AND claim_seq = %(claim_seq)s AND NOT cancel_requested
        RETURNING EXISTS (SELECT FROM queue_job child WHERE child.parent_id = job.id)
               OR EXISTS (SELECT FROM queue_job_dependency_rel WHERE dependency_id = job.id)
        """,
        {"id": job_id, "claim_seq": claim_seq, "result": result, "duration": duration},
    )
    row = cr.fetchone()
    return row[0] if row else None


def seconds_since(cr, moment):
    """Seconds from ``moment``, naive UTC, to the database's clock."""
    cr.execute(f"SELECT extract(epoch FROM {NOW} - %s)::float", (moment,))
    return cr.fetchone()[0]


def lock_attempt(cr, claim_seq, job_id):
    """Whether the attempt still owns its job, for the rest of this transaction; by key."""
    cr.execute(
        "SELECT FROM queue_job WHERE id = %s AND state = 'started' AND claim_seq = %s AND NOT cancel_requested"
        " FOR NO KEY UPDATE",
        (job_id, claim_seq),
    )
    return bool(cr.rowcount)


def attempt_states(cr, claims):
    """Of running attempts, which still own their job, and which of them were asked to stop; by key.

    :param claims: ``{job id: claim_seq}``
    :return: ``{job id: cancel_requested}`` of those that own their job
    """
    cr.execute(
        "SELECT id, claim_seq, cancel_requested FROM queue_job WHERE id = ANY(%s) AND state = 'started'",
        (list(claims),),
    )
    return {job_id: cancel for job_id, claim_seq, cancel in cr.fetchall() if claims[job_id] == claim_seq}


def request_cancel(cr, ids):
    """Ask the workers to stop running jobs; by key.

    :return: ids of those that are running
    """
    cr.execute(
        "UPDATE queue_job SET cancel_requested = true WHERE id = ANY(%s) AND state = 'started' RETURNING id",
        (list(ids),),
    )
    return [row[0] for row in cr.fetchall()]


def record_attempt(cr, job_id, claim_seq, outcome, counted, duration, error):
    """Keep an attempt that did not succeed; to be called before the job forgets it. By key.

    :param str outcome: one of the outcomes of ``queue.job.attempt``
    """
    cr.execute(
        f"INSERT INTO queue_job_attempt (job_id, started_at, ended_at, worker_id, outcome, counted, error)"
        f" SELECT id, {NOW} - make_interval(secs => %s), {NOW}, worker_id, %s, %s, %s FROM queue_job"
        " WHERE id = %s AND claim_seq = %s AND state = 'started'",
        (duration, outcome, counted, error, job_id, claim_seq),
    )


# --- workers ---------------------------------------------------------------------------------------------------------


def register_worker(cr, values):
    """Add the row of a worker; ``values`` has name, hostname, pid, version, databases and slots."""
    cr.execute(
        f"""
        INSERT INTO queue_worker (name, hostname, pid, version, databases, slots, running_jobs, memory, started_at,
                                  last_heartbeat, state, pause_requested, create_date, write_date)
        VALUES (%(name)s, %(hostname)s, %(pid)s, %(version)s, %(databases)s, %(slots)s, 0, 0, {NOW}, {NOW}, 'running',
                false, {NOW}, {NOW})
        """,
        values,
    )


def beat(cr, name, state, running_jobs, memory):
    """Show that a worker lives.

    :param int memory: MiB
    :return: whether it is asked to pause, or ``None`` if it was taken for dead
    """
    cr.execute(
        f"UPDATE queue_worker SET last_heartbeat = {NOW}, state = %s, running_jobs = %s, memory = %s"
        " WHERE name = %s AND state != 'dead' RETURNING pause_requested",
        (state, running_jobs, memory, name),
    )
    row = cr.fetchone()
    return row[0] if row else None


def unregister_worker(cr, name):
    """Remove the row of a worker that ends."""
    cr.execute("DELETE FROM queue_worker WHERE name = %s", (name,))


def bury_workers(cr, stale_after_seconds, name=None):
    """Mark workers as dead: those whose heartbeat is too old, or the one called ``name``; forget those dead for a day."""
    cr.execute(
        f"UPDATE queue_worker SET state = 'dead' WHERE state != 'dead'"
        f" AND (name = %s OR last_heartbeat < {NOW} - make_interval(secs => %s))",
        (name, stale_after_seconds),
    )
    cr.execute(f"DELETE FROM queue_worker WHERE state = 'dead' AND last_heartbeat < {NOW} - interval '1 day'")


def orphaned_jobs(cr, stale_after_seconds, count):
    """Lock jobs whose worker is dead or unknown; index: queue_job_running_idx.

    A worker runs what it claimed in the order it claimed it, so of its jobs only the first ``slots`` can have begun.

    :return: ``(id, claim_seq, worker, begun, attempts, max_retries, cancel_requested, exc_info, duration)`` of each
    """
    cr.execute(
        f"""
        SELECT job.id, job.claim_seq, job.worker_id, orphan.begun, job.attempts, job.max_retries, job.cancel_requested,
               job.exc_info, extract(epoch FROM {NOW} - job.started_at)::float
          FROM (SELECT running.id,
                       row_number() OVER (PARTITION BY worker_id ORDER BY claim_seq)
                           <= COALESCE(worker.slots, 2147483647) AS begun
                  FROM queue_job running
                  LEFT JOIN queue_worker worker ON worker.name = running.worker_id
                 WHERE running.state = 'started' AND COALESCE(worker.state, 'dead') = 'dead'
                   AND (running.worker_id IS NOT NULL
                        OR running.started_at < {NOW} - make_interval(secs => %(stale)s))) orphan
          JOIN queue_job job ON job.id = orphan.id AND job.state = 'started'
         ORDER BY job.id LIMIT %(count)s
           FOR NO KEY UPDATE OF job SKIP LOCKED
        """,
        {"stale": stale_after_seconds, "count": count},
    )
    return cr.fetchall()


def claimed_by(cr, name):
    """The started jobs of a worker, ``{job id: claim_seq}``; index: queue_job_running_idx."""
    cr.execute("SELECT id, claim_seq FROM queue_job WHERE state = 'started' AND worker_id = %s", (name,))
    return dict(cr.fetchall())


def terminate_backend(cr, pid):
    """End another database session of ours."""
    cr.execute("SELECT pg_terminate_backend(%s)", (pid,))


def modules_are_changing(cr):
    """Whether modules are being installed, upgraded or removed."""
    cr.execute("SELECT EXISTS (SELECT FROM ir_module_module WHERE state IN ('to install', 'to upgrade', 'to remove'))")
    return cr.fetchone()[0]


# --- housekeeping ----------------------------------------------------------------------------------------------------


def delete_ended_jobs(cr, days, count):
    """Delete up to ``count`` jobs that ended more than ``days`` ago and that no unfinished job needs.

    Index: queue_job_ended_idx; the unfinished graphs come from the partial indexes of the active states.

    :return: how many were deleted
    """
    cr.execute(
        f"""
        DELETE FROM queue_job WHERE id IN (
            SELECT job.id FROM queue_job job
             WHERE job.state IN {ENDED}
               AND COALESCE(job.completed_at, job.cancelled_at) < {NOW} - make_interval(days => %(days)s)
               AND (job.graph_uuid IS NULL OR job.graph_uuid NOT IN (
                    SELECT graph_uuid FROM queue_job WHERE state IN {ACTIVE} AND graph_uuid IS NOT NULL))
               AND NOT EXISTS (SELECT FROM queue_job child WHERE child.parent_id = job.id AND child.state IN {ACTIVE})
               AND NOT EXISTS (SELECT FROM queue_job_dependency_rel JOIN queue_job child ON child.id = job_id
                                WHERE dependency_id = job.id AND child.state IN {ACTIVE})
             LIMIT %(count)s)
        """,
        {"days": days, "count": count},
    )
    return cr.rowcount


def addon_is_installed(cr):
    """Whether the addon is installed in the cursor's database, which may not be one of Odoo's at all."""
    cr.execute("SELECT to_regclass('ir_module_module') IS NOT NULL AND to_regclass('queue_worker') IS NOT NULL")
    if not cr.fetchone()[0]:
        return False
    cr.execute("SELECT FROM ir_module_module WHERE name = 'job_worker' AND state IN ('installed', 'to upgrade')")
    return bool(cr.rowcount)
