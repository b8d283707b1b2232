"""Whether the cost of a job stays the same, whatever else is in the table and whoever looks at it."""

import time
from contextlib import ExitStack
from functools import partial

import psycopg2

from bench import backlogs, contestants, report
from bench.measure import Series, interleaved, percentile

PROCESSES = 2
DRAIN_JOBS = 10_000
LATENCY_JOBS = 200
SNAPSHOT_JOBS = 200_000
CHANNELS = 1000
MANY_CHANNELS = f"{CHANNELS} channels in use"


def backlog(options) -> dict:
    """Drain and idle latency of empty jobs beside a backlog of each kind."""
    count = options.jobs or DRAIN_JOBS
    drains, latencies = {}, {}
    with ExitStack() as stack:
        for name, make in {**backlogs.BACKLOGS, MANY_CHANNELS: _many_channels}.items():
            queue = stack.enter_context(contestants.ours_database(name))
            make(queue.db, options.rows)
            queue.db.query("VACUUM ANALYZE queue_job")
            drains[name] = partial(_drain, queue, count, latencies.setdefault(name, []))
        series = interleaved(options.rounds, drains)
    throughput = report.table(
        f"Drain of {count:,} empty jobs beside {options.rows:,} rows", series, "jobs/s", "empty table"
    )
    claims = {name: [percentile(round_, 50) for round_ in rounds] for name, rounds in latencies.items()}
    series = {name: Series(values) for name, values in claims.items()}
    idle = report.table(f"Idle latency beside {options.rows:,} rows, p50 of a round", series, "ms", "empty table")
    goals = []
    for name in list(drains)[1:]:
        goal = 1.5 if name == MANY_CHANNELS else 1.2
        slower, later = 1 / throughput[name]["ratio"], idle[name]["ratio"]
        goals.append((f"{name}: time of a drain", f"<= {goal}", slower, slower <= goal))
        goals.append((f"{name}: idle latency", f"<= {goal}", later, later <= goal))
    return {"rows": options.rows, "drain": throughput, "latency": idle, "goals": report.goals(goals)}


def _drain(queue, count: int, latencies: list) -> float:
    """Jobs a second, with a worker that lives for this measurement, so that the others don't disturb it."""
    queue.db.query("DELETE FROM queue_job WHERE state = 'done' AND method_name = 'job_clock'")
    channels = CHANNELS if queue.name == MANY_CHANNELS else 1
    with contestants.ours_worker(queue, PROCESSES):
        _spread_and_wait(queue, count // 4, channels)
        rate = _spread_and_wait(queue, count, channels)
        latencies.append([pair[0] * 1000 for pair in queue.driver("latency", LATENCY_JOBS)])
    return rate


def _spread_and_wait(queue, count: int, channels: int) -> float:
    """Store `count` empty jobs and wait for them; jobs a second."""
    before = queue.db.value("SELECT last_value FROM queue_job_id_seq")
    begin = queue.driver("spread", count, channels)
    left = "SELECT EXISTS (SELECT FROM queue_job WHERE id > %s AND state IN ('pending', 'started'))"
    contestants.wait_until(lambda: not queue.db.value(left, before), 600, "the jobs end")
    return count / (time.monotonic() - begin)


def _many_channels(db, _rows: int) -> None:
    """No backlog: the drained jobs themselves are in many channels, that hold as many as the one otherwise does."""
    db.query(
        'INSERT INTO queue_limit (name, "limit", rate_limit)'
        " SELECT 'channel' || n, 1000, 0 FROM generate_series(0, %s) n",
        CHANNELS,
    )


def snapshot(options) -> dict:
    """Drain while another session holds a snapshot from before, as a dump or a report does."""
    count = options.jobs or SNAPSHOT_JOBS
    with contestants.ours_database() as queue:
        measurements = {"without": partial(_passing, queue, count), "snapshot held": partial(_held, queue, count)}
        series = interleaved(min(options.rounds, 2) if count >= SNAPSHOT_JOBS else options.rounds, measurements)
    rows = report.table(f"Drain of {count:,} empty jobs", series, "jobs/s", "without")
    ratio = rows["snapshot held"]["ratio"]
    return {"drain": rows, "goals": report.goals([("held snapshot, to without", ">= 0.8", ratio, ratio >= 0.8)])}


def _passing(queue, count: int) -> float:
    queue.db.query(queue.forget)
    with contestants.ours_worker(queue, PROCESSES):
        return _fill_and_wait(queue, count)


def _held(queue, count: int) -> float:
    queue.db.query(queue.forget)
    holder = psycopg2.connect(dbname=queue.db.name)
    try:
        with holder.cursor() as cr:
            cr.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cr.execute("SELECT pg_current_xact_id()")
            with contestants.ours_worker(queue, PROCESSES):
                return _fill_and_wait(queue, count)
    finally:
        holder.close()


def _fill_and_wait(queue, count: int) -> float:
    backlogs.fill(queue.db, count, is_due="true")
    queue.db.query("NOTIFY queue_job_wake_up")
    begin = time.monotonic()
    queue.wait_until_drained(3600)
    return count / (time.monotonic() - begin)
