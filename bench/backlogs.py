"""Rows that lie in the table while jobs are drained, made by SQL, a million in half a minute."""

FILL = """
INSERT INTO queue_job (id, uuid, state, payload, channel, priority, user_id, company_id, is_due, attempts, max_retries,
                       timeout, run_on_failure, cancel_requested, database_failures, model_name, method_name,
                       create_uid, create_date, write_uid, write_date, scheduled_at, completed_at, parent_id)
SELECT nextval('queue_job_id_seq'), gen_random_uuid()::text, '{state}',
       '{{"model": "test.job.target", "method": "job_nothing", "ids": [], "args": [], "kwargs": {{}},
         "uid": 1, "su": true, "context": {{}}, "company_id": 1}}',
       {channel}, {priority}, 1, 1, {is_due}, 0, 5, 0, false, false, 0,
       'test.job.target', 'job_nothing', 1, now() AT TIME ZONE 'UTC', 1, now() AT TIME ZONE 'UTC',
       {scheduled_at}, {completed_at}, {parent_id}
  FROM generate_series(1, %s) n
"""
_DEFAULTS = {
    "state": "pending",
    "channel": "'root'",
    "priority": "10",
    "is_due": "false",
    "scheduled_at": "NULL::timestamp",
    "completed_at": "NULL::timestamp",
    "parent_id": "NULL::int",
}
NEXT_WEEK = "now() AT TIME ZONE 'UTC' + interval '7 days'"
_BETTER = {"channel": "'other'", "priority": "1", "is_due": "true"}
_PARENTS = 1000


def fill(db, count: int, **columns: str) -> None:
    """Insert `count` jobs; `columns` are SQL expressions over the number `n`."""
    db.query(FILL.format(**{**_DEFAULTS, **columns}), count)


def _limit(db, limit: int, rate: float = 0) -> None:
    db.query('INSERT INTO queue_limit (name, "limit", rate_limit) VALUES (%s, %s, %s)', "other", limit, rate)


def _done(db, rows: int) -> None:
    fill(db, rows, state="done", completed_at="now() AT TIME ZONE 'UTC' - n * interval '1 second'")


def _scheduled(db, rows: int) -> None:
    fill(db, rows, scheduled_at=f"{NEXT_WEEK} + n * interval '1 second'")


def _waiting(db, rows: int) -> None:
    fill(db, _PARENTS, scheduled_at=NEXT_WEEK)
    first = db.value("SELECT min(id) FROM queue_job WHERE state = 'pending'")
    fill(db, rows, state="waiting", parent_id=f"{first} + n %% {_PARENTS}")


def _full(db, rows: int) -> None:
    _limit(db, 1)
    # What takes the only seat belongs to a worker that lives for ever and never ends its job.
    db.query(
        "INSERT INTO queue_worker (name, state, slots, last_heartbeat) VALUES ('elsewhere', 'running', 1, 'infinity')"
    )
    fill(db, 1, **_BETTER)
    db.query(
        "UPDATE queue_job SET state = 'started', worker_id = 'elsewhere', claim_seq = nextval('queue_job_claim_seq'),"
        " started_at = now() AT TIME ZONE 'UTC' WHERE channel = 'other'"
    )
    fill(db, rows, **_BETTER)


def _paused(db, rows: int) -> None:
    _limit(db, 0)
    fill(db, rows, **_BETTER)


def _throttled(db, rows: int) -> None:
    _limit(db, 1000, rate=0.0001)
    db.query(
        "INSERT INTO queue_limit_starts"
        " SELECT id, ARRAY[now() AT TIME ZONE 'UTC'] FROM queue_limit WHERE name = 'other'"
    )
    fill(db, rows, **_BETTER)


BACKLOGS = {
    "empty table": lambda db, rows: None,
    "done": _done,
    "scheduled next week": _scheduled,
    "waiting": _waiting,
    "pending, channel full": _full,
    "pending, channel paused": _paused,
    "pending, channel throttled": _throttled,
}
