"""Claiming: the statements that choose and start jobs, and what a worker remembers from one claim to the next.

A claim is one transaction at READ COMMITTED of two statements. The first finds the channels that the best jobs are in
and takes their locks, without waiting. The second, whose snapshot is younger than the locks, counts what runs in these
channels, and starts the best jobs that there is room for. In a channel nobody claims without its lock, so the count
can't be outdated, and the limit of a channel holds over all workers.

**Horizons.** Rows that were claimed leave dead entries at the front of the indexes, and as long as any transaction of
the cluster is older than they are, neither vacuum nor the index scans themselves may remove them: every claim would
walk over all of them again. So a worker remembers for each channel how far it got, and goes on from there. Jobs that
become claimable behind a horizon (a requeue, a better priority) are told by the notification that wakes the workers,
and every second or so all channels are looked for from the beginning; less often where that takes long.
"""

import time

from ..lifecycle import NEXT_CLAIM, NOW, TRANSITIONS, wake_workers
from ..queries import prepared_statement

# How long to go on from the horizons before all channels are looked for again; 0 looks for them at every claim. And
# what share of the time looking for them may take, with dead entries by the million.
DISCOVER_SECONDS = 1.0
MAX_DISCOVER_SHARE = 0.1
# With more channels than this their horizons are not worth what it takes to pass them to and fro.
MAX_KNOWN_CHANNELS = 200
# How many jobs more than wanted to look at, once all of the best turned out to be locked by somebody.
FIRST_FURTHER = 8
MOST_FURTHER = 1024
_LOCK_SPACE = 0x6A6F62  # "job": first key of the advisory locks of channels

# The order of claims: as queue_job_claim_idx has it.
_RANK = "COALESCE(scheduled_at, '-infinity'::timestamp)"
_ORDER = f"channel, priority, {_RANK}, id"
_CLAIMABLE = "state = 'pending' AND is_due"

# Starts a throttled channel may have in a window: for less than one a second, the window grows instead. The 30 ms more
# than the second cover what is uneven in the way from the claim to the job's first line.
_RATE_CAP = "greatest(floor(rate_limit), 1)"
_RATE_WINDOW = "make_interval(secs => greatest(1, 1 / nullif(rate_limit, 0)) + 0.03)"
_RECENT_STARTS = f"(SELECT count(*) FROM unnest(starts) start WHERE start > {NOW} - {_RATE_WINDOW})"

_KNOWN = """
    unnest(%(channels)s, %(priorities)s, %(ranks)s, %(ids)s, %(running_from)s)
        known(channel, priority, rank, id, running_from)"""
_RUNNING = """
    SELECT count(*) AS running, min(claim_seq) AS running_from FROM queue_job job
     WHERE job.state = 'started' AND job.channel = {channel} AND job.claim_seq >= COALESCE({running_from}, 0)"""

# One row. The head of a channel is its best claimable job: the best N jobs are in the channels of the best N heads.
# Heads: queue_job_claim_idx, either skipping from channel to channel, or from the horizon of each known channel.
# Running jobs: queue_job_running_idx. Next schedule: queue_job_due_idx.
_OPEN_CHANNELS = f"""
WITH RECURSIVE known AS MATERIALIZED (SELECT * FROM {_KNOWN}
), skip AS (
    (SELECT channel, priority, {_RANK} AS rank, id FROM queue_job WHERE {_CLAIMABLE} AND %(discover)s
      ORDER BY {_ORDER} LIMIT 1)
    UNION ALL
    SELECT next.* FROM skip CROSS JOIN LATERAL (
        SELECT channel, priority, {_RANK}, id FROM queue_job WHERE {_CLAIMABLE} AND channel > skip.channel
         ORDER BY {_ORDER} LIMIT 1) next
), head AS MATERIALIZED (
    SELECT * FROM skip
    UNION ALL
    SELECT first.* FROM known CROSS JOIN LATERAL (
        SELECT channel, priority, {_RANK}, id FROM queue_job
         WHERE {_CLAIMABLE} AND channel = known.channel
           AND (priority, {_RANK}, id) >= (known.priority, known.rank, known.id)
         ORDER BY {_ORDER} LIMIT 1) first
     WHERE NOT %(discover)s
), unblocked AS (
    SELECT best.channel, COALESCE(rate_limit, 0) > 0 AS throttled
      FROM (SELECT * FROM head ORDER BY priority, rank, id OFFSET 0) best
      LEFT JOIN known ON known.channel = best.channel
      LEFT JOIN queue_limit ON queue_limit.name = best.channel
      LEFT JOIN queue_limit_starts ON limit_id = queue_limit.id
     WHERE COALESCE("limit", 1) > 0
       AND (COALESCE(rate_limit, 0) = 0 OR COALESCE({_RECENT_STARTS}, 0) < {_RATE_CAP})
       AND COALESCE("limit", 1) > (
           SELECT running FROM ({_RUNNING.format(channel="best.channel", running_from="known.running_from")}) running)
     LIMIT %(count)s + %(further)s
), open AS MATERIALIZED (
    SELECT channel, throttled, pg_try_advisory_xact_lock({_LOCK_SPACE}, hashtext(channel)) AS locked FROM unblocked
)
SELECT extract(epoch FROM least(
           (SELECT scheduled_at FROM queue_job WHERE state = 'pending' AND NOT is_due ORDER BY scheduled_at LIMIT 1),
           (SELECT min(starts[greatest(array_length(starts, 1) - {_RATE_CAP}::int + 1, 1)] + {_RATE_WINDOW})
              FROM queue_limit JOIN queue_limit_starts ON limit_id = queue_limit.id JOIN head ON channel = name
             WHERE rate_limit > 0 AND "limit" > 0 AND {_RECENT_STARTS} >= {_RATE_CAP})
       ) - {NOW})::float,
       ARRAY(SELECT channel FROM open WHERE locked),
       ARRAY(SELECT channel FROM open WHERE locked AND throttled),
       EXISTS (SELECT FROM open WHERE NOT locked),
       EXISTS (SELECT FROM head LEFT JOIN queue_limit ON name = channel
                WHERE COALESCE("limit", 1) > 0 AND COALESCE(rate_limit, 0) = 0),
       CASE WHEN (SELECT count(*) FROM head) <= {MAX_KNOWN_CHANNELS}
            THEN COALESCE((SELECT jsonb_agg(jsonb_build_array(channel, priority, rank::text, id)) FROM head), '[]')
       END, EXISTS (SELECT FROM queue_worker WHERE name = %(worker)s AND state != 'dead'),
       EXISTS (SELECT FROM ir_module_module WHERE state IN ('to install', 'to upgrade', 'to remove'))
"""

# The room in each locked channel, the best jobs that fit in it and as many more as to look further, the rows of those
# that nobody is changing, and of these the best that fit; numbered in the order in which they are to run.
# Index: queue_job_claim_idx from the horizon, or from the first entry of a channel that is new to the worker.
# Rows are looked up with ANY(ARRAY(…)), and children behind OFFSET 0: with statistics of an empty queue, a join may as
# well read the whole table for it.
_NUMBER = "(SELECT claim_seq FROM numbered WHERE numbered.id = job.id)"
_CLAIMED = TRANSITIONS["claim"].set_clause.replace(NEXT_CLAIM, _NUMBER).replace("%(worker_id)s", "%(worker)s")
_CLAIM = f"""
WITH channel AS MATERIALIZED (
    SELECT known.*, now_running.running_from AS oldest, ample,
           -- one more than there are free threads, to know that it is there
           greatest(0, least(seats, starts_left, CASE WHEN ample THEN %(count)s ELSE %(free)s + 1 END)) AS room
      FROM {_KNOWN}
      LEFT JOIN queue_limit ON queue_limit.name = known.channel
      LEFT JOIN queue_limit_starts ON limit_id = queue_limit.id
     CROSS JOIN LATERAL ({_RUNNING.format(channel="known.channel", running_from="known.running_from")}) now_running
     CROSS JOIN LATERAL (
           SELECT COALESCE("limit", 1) - running AS seats,
                  CASE WHEN rate_limit > 0 THEN {_RATE_CAP} - COALESCE({_RECENT_STARTS}, 0) ELSE %(count)s END
                  AS starts_left,
                  COALESCE(rate_limit, 0) = 0 AND COALESCE("limit", 1) - running >= 4 * %(count)s AS ample) seat
), best AS MATERIALIZED (
    SELECT job.id, channel.channel, oldest, ample, room,
           row_number() OVER (ORDER BY job.priority, job.rank, job.id) AS place
      FROM channel
     CROSS JOIN LATERAL (
           SELECT id, priority, {_RANK} AS rank FROM queue_job
            WHERE {_CLAIMABLE} AND queue_job.channel = channel.channel
              AND (priority, {_RANK}, id) >= (channel.priority, channel.rank, channel.id)
            ORDER BY {_ORDER}
            LIMIT CASE WHEN room > 0 THEN room + %(further)s ELSE 0 END
           ) job
     ORDER BY place
     LIMIT %(count)s + %(further)s
), locked AS MATERIALIZED (
    -- What else the choice went by is asked again of a row that was changed since the snapshot.
    SELECT id FROM queue_job
     -- claimable, as an expression that no index has but the one of the ids
     WHERE id = ANY(ARRAY(SELECT id FROM best)) AND CASE state WHEN 'pending' THEN is_due END
       AND channel = (SELECT channel FROM best WHERE best.id = queue_job.id)
       FOR NO KEY UPDATE SKIP LOCKED
), ranked AS MATERIALIZED (
    SELECT id, oldest, ample, row_number() OVER (ORDER BY place) AS place
      FROM (SELECT *, row_number() OVER (PARTITION BY channel ORDER BY place) AS seat
              FROM best WHERE id IN (SELECT id FROM locked)) seated
     WHERE seat <= room
), numbered AS MATERIALIZED (
    -- Ahead of a free thread only where seats abound and starts are not counted, and nothing past a better job that may
    -- not be claimed ahead.
    SELECT id, oldest, {NEXT_CLAIM} AS claim_seq
      FROM (SELECT * FROM ranked
             WHERE place <= %(count)s
               AND place < COALESCE((SELECT min(place) FROM ranked WHERE place > %(free)s AND NOT ample), 2147483647)
             ORDER BY place OFFSET 0) chosen
)
UPDATE queue_job job SET {_CLAIMED}
 WHERE job.id = ANY(ARRAY(SELECT id FROM numbered))
RETURNING job.id, job.claim_seq, job.uuid, job.payload, job.user_id, job.company_id, job.channel, job.priority,
          job.attempts, job.max_retries, job.timeout, job.database_failures,
          extract(epoch FROM {NOW} - job.create_date)::float,
          EXISTS (SELECT FROM queue_job child WHERE child.parent_id = job.id OFFSET 0)
          OR EXISTS (SELECT FROM queue_job_dependency_rel WHERE dependency_id = job.id OFFSET 0),
          {_RANK.replace("scheduled_at", "job.scheduled_at")}::text,
          (SELECT oldest FROM numbered WHERE numbered.id = job.id)
"""

_RECORD_STARTS = f"""
INSERT INTO queue_limit_starts AS known (limit_id, starts)
SELECT id, array_agg({NOW}) FROM queue_limit JOIN unnest(%(channels)s::text[]) start(channel) ON name = start.channel
 WHERE rate_limit > 0 GROUP BY id
ON CONFLICT (limit_id) DO UPDATE
   SET starts = (SELECT array_agg(start ORDER BY start) FROM unnest(known.starts || excluded.starts) start
                  WHERE start > {NOW} - (SELECT {_RATE_WINDOW} FROM queue_limit WHERE id = known.limit_id))
"""

# Index: queue_job_due_idx.
_MARK_DUE = f"""
UPDATE queue_job SET is_due = true
 WHERE id IN (SELECT id FROM queue_job WHERE state = 'pending' AND NOT is_due AND scheduled_at <= {NOW}
               ORDER BY scheduled_at LIMIT 1000 FOR NO KEY UPDATE SKIP LOCKED)
RETURNING channel, priority, id
"""

_WANTED_TYPES = {"worker": "text", "count": "int", "further": "int"}
_KNOWN_TYPES = {
    "channels": "text[]",
    "priorities": "int[]",
    "ranks": "timestamp[]",
    "ids": "int[]",
    "running_from": "bigint[]",
}
_STATEMENTS = {
    "open": (_OPEN_CHANNELS, {**_WANTED_TYPES, "discover": "bool", **_KNOWN_TYPES}),
    "claim": (_CLAIM, {**_WANTED_TYPES, "free": "int", **_KNOWN_TYPES}),
}
_BEGINNING = (-(2**31), "-infinity", 0)


class Claiming:
    """The claims of one worker, on one connection.

    :param bool prepared: the connection keeps prepared statements; call :meth:`prepare` whenever it was opened
    """

    def __init__(self, prepared):
        self._prepared = prepared
        self._sql = {}
        self._prepare = []
        for name, (sql, types) in _STATEMENTS.items():
            prepare, execute, plain = prepared_statement(f"job_worker_{name}", sql, types)
            self._prepare.append(prepare)
            self._sql[name] = execute if prepared else plain
        self._horizons = {}
        self._running_from = {}
        self._discover_at = 0.0
        self._too_many = False
        self._further = 0
        self._best_heard = None

    def prepare(self, cr):
        """Have the statements planned once for this session."""
        if self._prepared:
            cr.execute("; ".join(["SET plan_cache_mode = force_generic_plan", *self._prepare]))

    def forget(self):
        """Look for all channels at the next claim, and count all that runs."""
        self._discover_at = 0.0
        self._running_from.clear()  # after a failover the numbers may have been set back

    def hear(self, payload):
        """Take the hint of a notification: which jobs became claimable; without one, look for all of them.

        :param str payload: see :func:`~..lifecycle.wake_workers`
        """
        for line in payload.split("\n") if payload else ():
            channel, priority, job_id = line.split("\t")
            key = (int(priority), "-infinity", int(job_id))
            self._horizons[channel] = min(self._horizons.get(channel, key), key)
            self._best_heard = min(key[0], key[0] if self._best_heard is None else self._best_heard)
        if not payload:
            self.forget()

    def take_best_heard(self):
        """The best priority among the jobs that became claimable since the last call, ``None`` if there were none."""
        best, self._best_heard = self._best_heard, None
        return best

    def open_channels(self, cr, worker, count):
        """Lock the channels that the best ``count`` jobs are in, until the end of the transaction.

        :return: ``(seconds until a scheduled job or a throttled channel is due or None, locked channels, those of them
            that are throttled, whether another worker held one, whether jobs wait in channels that are neither paused
            nor throttled, whether this worker still counts as alive, whether modules are being installed or upgraded)``
        """
        discover = self._should_discover()
        parameters = {"worker": worker, "count": count, "discover": discover, **self._known(self._horizons)}
        parameters["further"] = self._further
        begin = time.monotonic()
        cr.execute(self._sql["open"], parameters)
        due_in, channels, throttled, busy, queued, found, alive, modules_changing = cr.fetchone()
        if discover:
            end = time.monotonic()
            self._discover_at = end + max(DISCOVER_SECONDS, (end - begin) / MAX_DISCOVER_SHARE)
        # Channels that have nothing left are forgotten: a notification tells when they have.
        self._too_many = found is None
        self._horizons = {channel: tuple(key) for channel, *key in found or ()}
        return due_in, channels, throttled, busy, queued, alive, modules_changing

    @property
    def looks_further(self):
        """Whether all the best jobs were being changed by somebody, and the next claim looks at more of them."""
        return 0 < self._further < MOST_FURTHER

    def _should_discover(self):
        return self._too_many or len(self._horizons) > MAX_KNOWN_CHANNELS or time.monotonic() >= self._discover_at

    def claim(self, cr, worker, channels, free, count):
        """Start the best jobs of locked channels.

        :param channels: what :meth:`open_channels` locked in this transaction
        :param int free: jobs the worker can run at once now
        :param int count: jobs to claim at most; what goes beyond ``free`` is claimed ahead
        :return: values of :class:`~.attempt.Claim`, in the order of the claims
        """
        parameters = {"worker": worker, "free": free, "count": count, **self._known(channels)}
        parameters["further"] = self._further
        cr.execute(self._sql["claim"], parameters)
        rows = sorted(cr.fetchall(), key=lambda row: row[1])
        self._further = 0 if rows else min(max(2 * self._further, FIRST_FURTHER), MOST_FURTHER)
        running_from = {}
        for row in rows:
            (job_id, claim_seq), channel, priority, (rank, oldest) = row[:2], row[6], row[7], row[-2:]
            key = (priority, rank, job_id)
            self._horizons[channel] = max(self._horizons.get(channel, _BEGINNING), key, key=_sort_key)
            running_from[channel] = min(running_from.get(channel, claim_seq), oldest or claim_seq)
        if len(self._running_from) > MAX_KNOWN_CHANNELS:  # of channels that come and go
            self._running_from.clear()
        self._running_from.update(running_from)
        return [row[:-2] for row in rows]

    def record_starts(self, cr, channels):
        """Remember the starts just claimed in throttled channels; ``channels`` has one name for each start; by key."""
        cr.execute(_RECORD_STARTS, {"channels": list(channels)})

    def mark_due(self, cr):
        """Make pending jobs claimable whose schedule has come, unless somebody is changing them.

        :return: whether there were any
        """
        cr.execute(_MARK_DUE)
        due = cr.fetchall()
        if due:
            wake_workers(cr, due)
        return bool(due)

    def _known(self, channels):
        """The horizons of ``channels``, as the statements take them."""
        keys = [self._horizons.get(channel, _BEGINNING) for channel in channels]
        return {
            "channels": list(channels),
            "priorities": [key[0] for key in keys],
            "ranks": [key[1] for key in keys],
            "ids": [key[2] for key in keys],
            "running_from": [self._running_from.get(channel) for channel in channels],
        }


def _sort_key(key):
    """Order of horizons as the database has it: ISO dates sort as text, but for the infinite past."""
    priority, rank, job_id = key
    return priority, rank != "-infinity", rank, job_id
