"""Claiming: the statements that choose and start jobs, and what a worker remembers from one claim to the next.

A claim is one transaction at READ COMMITTED of two statements. The first finds the channels that the best jobs are in
and takes their locks, without waiting. The second, whose snapshot is younger than the locks, counts what runs in these
channels, and starts the best jobs that there is room for. In a channel nobody claims without its lock, so the count
can't be outdated, and the limit of a channel holds over all workers.

Both are in a function of the session, so that a claim is one round trip and holds its locks for no longer than the
server needs. Where there is no session to keep it, or no right to create it, they are sent one after the other.

**Horizons.** Rows that were claimed leave dead entries at the front of the indexes, and as long as any transaction of
the cluster is older than they are, neither vacuum nor the index scans themselves may remove them: every claim would
walk over all of them again. So a worker remembers for each channel how far it got, and goes on from there. Jobs that
become claimable behind a horizon (a requeue, a better priority) are told by the notification that wakes the workers,
and every second or so all channels are looked for from the beginning; less often where that takes long.
"""

import time
from dataclasses import dataclass

import psycopg2

from ..database_errors import is_trouble
from ..job import DEFAULT_MAX_RETRIES
from ..lifecycle import NEXT_CLAIM, NOW, TRANSITIONS, wake_workers
from ..queries import GATE_IS_CLOSED
from . import events
from .attempt import Claim

# How long to go on from the horizons before all channels are looked for again; 0 looks for them at every claim. And
# what share of the time looking for them may take, with dead entries by the million.
DISCOVER_SECONDS = 1.0
MAX_DISCOVER_SHARE = 0.1
# With more channels than this their horizons are not worth what it takes to pass them to and fro.
MAX_KNOWN_CHANNELS = 200
# How many jobs more than wanted to look at, once all of the best turned out to be locked by somebody.
FIRST_FURTHER = 8
MOST_FURTHER = 16 * 1024
STARVING_SECONDS = 2.0
# A claim may bring dozens of jobs: what takes more in the table is fetched by the thread that runs the job.
MAX_PAYLOAD_BYTES = 16384
_LOCK_SPACE = 0x6A6F62  # "job": first key of the advisory locks of channels

# The order of claims: as queue_job_claim_idx has it.
_RANK = "COALESCE(scheduled_at, '-infinity'::timestamp)"
_ORDER = f"channel, priority, {_RANK}, id"
_CLAIMABLE = "state = 'pending' AND is_due"

# Starts a throttled channel may have in a window: for less than one a second, the window grows instead. The 30 ms more
# than the second cover what is uneven in the way from the claim to the job's first line.
_RATE_CAP = "greatest(floor(rate_limit), 1)"
_RATE_WINDOW = "make_interval(secs => greatest(1, 1 / nullif(rate_limit, 0)) + 0.03)"
# What lies further ahead than a window was written before the server's clock was set back: it means nothing.
_IS_RECENT = f"start > {NOW} - {{window}} AND start < {NOW} + {{window}}"
_RECENT_STARTS = f"(SELECT count(*) FROM unnest(starts) start WHERE {_IS_RECENT.format(window=_RATE_WINDOW)})"

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
    SELECT best.channel, best.priority, best.rank, best.id, known.running_from, COALESCE(rate_limit, 0) > 0 AS throttled
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
    SELECT *, pg_try_advisory_xact_lock({_LOCK_SPACE}, hashtext(channel)) AS locked FROM unblocked
)
SELECT extract(epoch FROM least(
           (SELECT scheduled_at FROM queue_job WHERE state = 'pending' AND NOT is_due ORDER BY scheduled_at LIMIT 1),
           (SELECT min(starts[greatest(array_length(starts, 1) - {_RATE_CAP}::int + 1, 1)] + {_RATE_WINDOW})
              FROM queue_limit JOIN queue_limit_starts ON limit_id = queue_limit.id JOIN head ON channel = name
             WHERE rate_limit > 0 AND "limit" > 0 AND {_RECENT_STARTS} >= {_RATE_CAP})
       ) - {NOW})::float AS due_in,
       mine.*,
       EXISTS (SELECT FROM open WHERE NOT locked) AS busy,
       EXISTS (SELECT FROM head LEFT JOIN queue_limit ON name = channel
                WHERE COALESCE("limit", 1) > 0 AND COALESCE(rate_limit, 0) = 0) AS queued,
       CASE WHEN (SELECT count(*) FROM head) <= {MAX_KNOWN_CHANNELS}
            THEN COALESCE((SELECT jsonb_agg(jsonb_build_array(channel, priority, rank::text, id)) FROM head), '[]')
       END AS heads,
       EXISTS (SELECT FROM queue_worker WHERE name = %(worker)s AND state != 'dead') AS alive,
       {GATE_IS_CLOSED} AS gate_closed
  FROM (SELECT array_agg(channel::text) AS channels, array_agg(priority) AS priorities,
               array_agg(rank::text) AS ranks, array_agg(id) AS ids, array_agg(running_from) AS running_from,
               array_agg(channel::text) FILTER (WHERE throttled) AS throttled
          FROM open WHERE locked) mine
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
     -- claimable, as an expression that no index has but the one of the ids, and that no join comes from
     WHERE id = ANY(ARRAY(SELECT id FROM best))
       AND CASE state WHEN 'pending' THEN is_due AND (id, channel) IN (SELECT id, channel FROM best) END
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
), claimed AS (
    UPDATE queue_job job SET {_CLAIMED}
     WHERE job.id = ANY(ARRAY(SELECT id FROM numbered))
    RETURNING job.id, job.claim_seq, job.uuid,
              CASE WHEN pg_column_size(job.payload) <= {MAX_PAYLOAD_BYTES} THEN job.payload END AS payload,
              job.user_id, job.company_id, job.channel, job.priority,
              -- as if it had them: a number that is missing is no reason to fail
              COALESCE(job.attempts, 0) AS attempts, COALESCE(job.max_retries, {DEFAULT_MAX_RETRIES}) AS max_retries,
              COALESCE(job.timeout, 0) AS timeout, COALESCE(job.database_failures, 0) AS database_failures,
              extract(epoch FROM {NOW} - job.create_date)::float AS age,
              extract(epoch FROM {NOW} - job.worker_died_at)::float AS died_ago,
              EXISTS (SELECT FROM queue_job child WHERE child.parent_id = job.id OFFSET 0)
              OR EXISTS (SELECT FROM queue_job_dependency_rel WHERE dependency_id = job.id OFFSET 0) AS has_children,
              {_RANK.replace("scheduled_at", "job.scheduled_at")}::text AS rank,
              (SELECT oldest FROM numbered WHERE numbered.id = job.id) AS oldest
)
SELECT * FROM claimed ORDER BY claim_seq
"""

_OWN_RATE_WINDOW = f"(SELECT {_RATE_WINDOW} FROM queue_limit WHERE id = known.limit_id)"
_RECORD_STARTS = f"""
INSERT INTO queue_limit_starts AS known (limit_id, starts)
SELECT id, array_agg({NOW}) FROM queue_limit JOIN unnest(%(channels)s::text[]) start(channel) ON name = start.channel
 WHERE rate_limit > 0 GROUP BY id
ON CONFLICT (limit_id) DO UPDATE
   SET starts = (SELECT array_agg(start ORDER BY start) FROM unnest(known.starts || excluded.starts) start
                  WHERE {_IS_RECENT.format(window=_OWN_RATE_WINDOW)})
"""

# Index: queue_job_due_idx.
_MARK_DUE = f"""
UPDATE queue_job SET is_due = true
 WHERE id IN (SELECT id FROM queue_job WHERE state = 'pending' AND NOT is_due AND scheduled_at <= {NOW}
               ORDER BY scheduled_at LIMIT 1000 FOR NO KEY UPDATE SKIP LOCKED)
RETURNING channel, priority, id
"""

_WANTED_TYPES = {
    "worker": "text",
    "count": "int",
    "further": "int",
    "free": "int",
    "discover": "bool",
    "modules": "text",
}
_KNOWN_TYPES = {
    "channels": "text[]",
    "priorities": "int[]",
    "ranks": "timestamp[]",
    "ids": "bigint[]",
    "running_from": "bigint[]",
}
_TYPES = {**_WANTED_TYPES, **_KNOWN_TYPES}
_STATEMENTS = {"open": _OPEN_CHANNELS, "claim": _CLAIM}
# In a function at READ COMMITTED each statement has a snapshot of its own, as in a transaction. It returns what it
# opened, then each job, then the signals: in rows of their own, because one value can't hold the payloads of all.
_FUNCTION = """
CREATE OR REPLACE FUNCTION pg_temp.job_worker_claim({types}) RETURNS SETOF json LANGUAGE plpgsql AS $function$
DECLARE
    opened record;
    taken record;
    started text[] := '{{}}';
BEGIN
    SELECT * INTO opened FROM ({open}) found_channels;
    RETURN NEXT to_json(opened);
    IF opened.alive AND opened.channels IS NOT NULL AND NOT opened.gate_closed THEN
        FOR taken IN {claim} LOOP
            RETURN NEXT to_json(taken);
            started := started || taken.channel::text;
        END LOOP;
    END IF;
    IF started != '{{}}' THEN
        IF opened.throttled IS NOT NULL THEN
            {record_starts};
        END IF;
        RETURN NEXT {signals};
    END IF;
END
$function$
"""
_PLACEHOLDERS = {name: f"%({name})s::{kind}" for name, kind in _TYPES.items()}
_CALL = f"SELECT pg_temp.job_worker_claim({', '.join(_PLACEHOLDERS.values())})"
_BEGINNING = (-(2**31), "-infinity", 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a claim found.

    :param claims: the jobs it started, in the order in which they are to run
    :param signals: what :class:`~.signals.Signals` follows; ``None`` without claims
    :param due_in: seconds until a scheduled job or a throttled channel is due, or ``None``
    :param busy: whether another worker is claiming in a channel of the best jobs
    :param queued: whether jobs wait in channels that are neither paused nor throttled
    :param alive: whether this worker still counts as alive
    :param gate_closed: whether modules are not as the worker knows them
    :param again: whether all the best jobs were being changed by somebody, and the next claim looks at more of them
    :param starving: whether the best job of a channel has been held by somebody for long
    """

    claims: list
    signals: list
    due_in: float
    busy: bool
    queued: bool
    alive: bool
    gate_closed: bool
    again: bool
    starving: bool


class Claiming:
    """The claims of one worker.

    :param bool session: the connection keeps what :meth:`prepare` makes; call that whenever it was opened
    """

    def __init__(self, session):
        self._session = session
        self._has_function = False
        self._signals = None
        self._horizons = {}
        self._running_from = {}
        self._discover_at = 0.0
        self._too_many = False
        self._further = 0
        self._best_heard = None
        self._passed_by = {}

    def prepare(self, cr, signals):
        """Make the function, whose statements are planned once for the session.

        :param str signals: see :attr:`.signals.Signals.expression`
        """
        self._signals = signals
        self._has_function = False
        if not self._session:
            return
        arguments = {name: f"${place}" for place, name in enumerate(_TYPES, 1)}
        opened = {name: f"opened.{name}::{kind}" for name, kind in _KNOWN_TYPES.items()}
        function = _FUNCTION.format(
            types=", ".join(_TYPES.values()),
            open=_STATEMENTS["open"] % arguments,
            claim=_STATEMENTS["claim"] % {**arguments, **opened},
            record_starts=_RECORD_STARTS % {"channels": "started"},
            signals=signals,
        )
        try:
            # Without the isolation, channels would be counted as they were before they were locked.
            cr.execute("SET plan_cache_mode = force_generic_plan; SET default_transaction_isolation = 'read committed'")
            cr.execute(function)  # pylint: disable=sql-injection
            self._has_function = True
        except psycopg2.Error as error:  # no right to temporary objects, or something that watches over new ones
            if is_trouble(error):
                raise
            events.no_function(error)

    def forget(self):
        """Look for all channels at the next claim, and count all that runs."""
        self._discover_at = 0.0
        self._horizons.clear()
        self._running_from.clear()  # after a failover the numbers may have been set back

    def hear(self, payload):
        """Take the hint of a notification: which jobs became claimable; without one, look for all of them.

        :param str payload: see :func:`~..lifecycle.wake_workers`
        """
        try:
            hints = [_read_hint(line) for line in payload.split("\n")] if payload else []
        except ValueError:  # somebody else's
            hints = []
        for channel, key in hints:
            self._horizons[channel] = min(self._horizons.get(channel, key), key)
            self._best_heard = min(key[0], key[0] if self._best_heard is None else self._best_heard)
        if not hints:
            self.forget()

    def take_best_heard(self):
        """The best priority among the jobs that became claimable since the last call, ``None`` if there were none."""
        best, self._best_heard = self._best_heard, None
        return best

    def claim(self, connection, worker, free, count, modules=None):
        """Start the best jobs that there is room for, in a transaction of its own.

        :param connection: :class:`~.connection.Connection`
        :param str worker: name of the worker
        :param int free: jobs it can run at once now
        :param int count: jobs to claim at most; what goes beyond ``free`` is claimed ahead
        :param str modules: as the worker knows them, see :class:`~.gate.Gate`; ``None`` for however they are
        :rtype: Outcome
        """
        discover = self._too_many or len(self._horizons) > MAX_KNOWN_CHANNELS or time.monotonic() >= self._discover_at
        parameters = {"worker": worker, "free": free, "count": count, "discover": discover, "further": self._further}
        parameters.update(self._known(), modules=modules)
        begin = time.monotonic()
        try:
            opened, jobs, signals = self._ask(connection, parameters)
        except Exception:
            self.forget()  # what was remembered may be what fails
            raise
        end = time.monotonic()
        if discover:
            self._discover_at = end + max(DISCOVER_SECONDS, (end - begin) / MAX_DISCOVER_SHARE)
        self._remember(opened["heads"], jobs)
        tried = opened["channels"] and opened["alive"] and not opened["gate_closed"]
        if tried and discover:
            self._note_passed_by(zip(opened["channels"], opened["ids"], strict=True), jobs)
        if tried:
            self._further = 0 if jobs else min(max(4 * self._further, FIRST_FURTHER), MOST_FURTHER)
        due_in = opened["due_in"]
        return Outcome(
            claims=[_as_claim(job, opened["throttled"] or ()) for job in jobs],
            signals=signals,
            due_in=None if due_in is None else float(due_in),  # for JSON, infinity is a string
            again=bool(tried) and not jobs and 0 < self._further < MOST_FURTHER,
            starving=any(end - since > STARVING_SECONDS for since in self._passed_by.values()),
            **{name: opened[name] for name in ("busy", "queued", "alive", "gate_closed")},
        )

    def _note_passed_by(self, heads, jobs):
        """Since when somebody has held the best job of a channel whenever all channels were looked for.

        :param heads: channel and id of each
        :param jobs: those that were claimed
        """
        now = time.monotonic()
        claimed, channels = {job["id"] for job in jobs}, {job["channel"] for job in jobs}
        passed_by = [job_id for channel, job_id in heads if job_id not in claimed and (channel in channels or not jobs)]
        self._passed_by = {job_id: self._passed_by.get(job_id, now) for job_id in passed_by}

    def _ask(self, connection, parameters):
        if not self._has_function:
            return _claim_in_steps(connection, parameters, self._signals)
        with connection.transaction(single_statement=True) as cr:
            cr.execute(_CALL, parameters)
            opened, *jobs = (row for (row,) in cr.fetchall())
        return opened, jobs, jobs.pop() if jobs else None

    def _remember(self, heads, jobs):
        """How far the worker got in each channel.

        Channels that have nothing left are forgotten: a notification tells when they have.
        """
        self._too_many = heads is None
        self._horizons = {channel: tuple(key) for channel, *key in heads or ()}
        running_from = {}
        for job in jobs:
            channel, claim_seq = job["channel"], job["claim_seq"]
            key = (job["priority"], job["rank"], job["id"])
            self._horizons[channel] = max(self._horizons.get(channel, _BEGINNING), key, key=_sort_key)
            running_from[channel] = min(running_from.get(channel, claim_seq), job["oldest"] or claim_seq)
        if len(self._running_from) > MAX_KNOWN_CHANNELS:  # of channels that come and go
            self._running_from.clear()
        self._running_from.update(running_from)

    def mark_due(self, cr):
        """Make pending jobs claimable whose schedule has come, unless somebody is changing them.

        :return: whether there were any
        """
        cr.execute(_MARK_DUE)
        due = cr.fetchall()
        if due:
            wake_workers(cr, due)
        return bool(due)

    def _known(self):
        """The horizons, as the statements take them."""
        keys = self._horizons.values()
        return {
            "channels": list(self._horizons),
            "priorities": [key[0] for key in keys],
            "ranks": [key[1] for key in keys],
            "ids": [key[2] for key in keys],
            "running_from": [self._running_from.get(channel) for channel in self._horizons],
        }


def _read_hint(line):
    """Channel and horizon from a line of a notification.

    :raise ValueError: it is none
    """
    channel, priority, job_id = line.split("\t")
    key = (int(priority), "-infinity", int(job_id))
    if not (-(2**31) <= key[0] < 2**31 and 0 <= key[2] < 2**63):
        raise ValueError(line)
    return channel, key


def _as_claim(job, throttled):
    known = {name: value for name, value in job.items() if name in Claim.__dataclass_fields__}
    return Claim(**known, throttled=job["channel"] in throttled)


def _as_dicts(cr):
    names = [column.name for column in cr.description]
    return [dict(zip(names, row, strict=True)) for row in cr.fetchall()]


def _claim_in_steps(connection, parameters, signals):
    """What the function does, statement by statement."""
    jobs, row = [], None
    with connection.transaction() as cr:
        cr.execute(_STATEMENTS["open"] % _PLACEHOLDERS, parameters)
        (opened,) = _as_dicts(cr)
        if opened["alive"] and opened["channels"] and not opened["gate_closed"]:
            parameters = {**parameters, **{name: opened[name] for name in _KNOWN_TYPES}}
            cr.execute(_STATEMENTS["claim"] % _PLACEHOLDERS, parameters)
            jobs = _as_dicts(cr)
        if jobs:
            if opened["throttled"]:
                cr.execute(_RECORD_STARTS % {"channels": "%s"}, ([job["channel"] for job in jobs],))
            # after the commit, because until then nobody else claims in these channels
            cr.commit_then(f"SELECT {signals}")
            row = cr.fetchone()[0]
    return opened, jobs, row


def _sort_key(key):
    """Order of horizons as the database has it: ISO dates sort as text, but for the infinite past."""
    priority, rank, job_id = key
    return priority, rank != "-infinity", rank, job_id
