"""Whether limits hold, and what they cost, by the ledger that the jobs write."""

import time
from contextlib import ExitStack
from functools import partial

from bench import contestants, report
from bench.measure import Series, interleaved

PROCESSES, THREADS = 8, 4
LIMITS = (1, 3, 10)
JOBS = 20_000
JOB_SECONDS = 0.02
CHANNEL = "limited"

RATE, RATE_PROCESSES = 5, 4

# A job that ends in the very moment another begins does not run beside it.
_AT_ONCE = """
SELECT max(running) FROM (
    SELECT sum(change) OVER (ORDER BY at, change ROWS UNBOUNDED PRECEDING) AS running
      FROM (SELECT began_at AS at, 1 AS change FROM test_job_ledger
            UNION ALL SELECT ended_at, -1 FROM test_job_ledger) changes
) runs
"""
_SHARE = "SELECT sum(ended_at - began_at) / (max(ended_at) - min(began_at)) / %s FROM test_job_ledger"
_IN_A_SECOND = """
SELECT max(starts) FROM (
    SELECT count(*) OVER (ORDER BY began_at RANGE BETWEEN CURRENT ROW AND 0.999999 FOLLOWING) AS starts
      FROM test_job_ledger) windows
"""


def limits(options) -> dict:
    """The highest number of jobs at once, and how much of what the limit allows is done.

    Two measures of the latter: the share of time in which the limit's seats have a job between its first and last line,
    and the throughput beside that of a worker that has as many slots and no limit.
    """
    jobs = options.jobs or JOBS
    most = {limit: [] for limit in LIMITS}
    seats = {f"limit {limit}": Series() for limit in LIMITS}
    with ExitStack() as stack:
        limited = stack.enter_context(contestants.ours_database("limited"))
        free = stack.enter_context(contestants.ours_database("free"))
        measurements = {}
        for limit in LIMITS:
            name = f"limit {limit}"
            count = max(jobs * limit // max(LIMITS), 100) if options.jobs else jobs
            measurements[name] = partial(_limited, limited, limit, count, most[limit], seats[name].values)
            measurements[f"{limit} slots, no limit"] = partial(_free, free, limit, count)
        series = interleaved(1 if jobs >= JOBS else options.rounds, measurements)
    title = f"Jobs of {JOB_SECONDS * 1000:.0f} ms of waiting, limits with {PROCESSES} x {THREADS}"
    rates = report.table(title, series, "jobs/s")
    shares = report.table("Seats taken", seats, "share")
    goals = []
    for limit in LIMITS:
        name, highest = f"limit {limit}", max(most[limit])
        share, ratio = seats[name].median, series[name].median / series[f"{limit} slots, no limit"].median
        goals.append((f"{name}: most at once", f"<= {limit}", float(highest), highest <= limit))
        goals.append((f"{name}: seats taken", ">= 0.8", share, share >= 0.8))
        goals.append((f"{name}: to {limit} slots without limit", ">= 0.8", ratio, ratio >= 0.8))
    return {"most_at_once": most, "rates": rates, "shares": shares, "goals": report.goals(goals)}


def _limited(queue, limit: int, count: int, most: list, seats: list) -> float:
    with contestants.ours_worker(queue, PROCESSES, THREADS):
        rate = _ledger(queue, limit, count)
    most.append(int(queue.db.value(_AT_ONCE)))
    seats.append(float(queue.db.value(_SHARE, limit)))
    return rate


def _free(queue, slots: int, count: int) -> float:
    processes = 2 if slots > 4 else 1
    with contestants.ours_worker(queue, processes, slots // processes):
        return _ledger(queue, 1000, count)


def _ledger(queue, limit: int, count: int) -> float:
    """Jobs a second from the first line of the first to the last line of the last."""
    queue.db.query(queue.forget)
    _set_limit(queue, limit)
    queue.driver("ledger", count, JOB_SECONDS, CHANNEL)
    queue.wait_until_drained()
    return count / queue.db.value("SELECT (max(ended_at) - min(began_at))::float FROM test_job_ledger")


def rate(options) -> dict:
    """The highest number of starts in any sliding second, and how many there are in a minute."""
    with contestants.ours_database() as queue, contestants.ours_worker(queue, RATE_PROCESSES):
        _set_limit(queue, 1000, RATE)
        queue.driver("ledger", int(2 * RATE * options.seconds), 0, CHANNEL)
        contestants.wait_until(lambda: queue.db.value("SELECT count(*) FROM test_job_ledger"), what="the first start")
        time.sleep(options.seconds)
        in_a_second = int(queue.db.value(_IN_A_SECOND))
        starts = queue.db.value(
            "SELECT count(*) FROM test_job_ledger WHERE began_at < (SELECT min(began_at) FROM test_job_ledger) + %s",
            options.seconds,
        )
    wanted = round(290 / 300 * RATE * options.seconds)
    found = {"rate limit": RATE, "seconds": options.seconds, "most in a sliding second": in_a_second, "starts": starts}
    goals = [
        ("most starts in a sliding second", f"<= {RATE}", float(in_a_second), in_a_second <= RATE),
        (f"starts in {options.seconds:.0f} s", f">= {wanted}", float(starts), starts >= wanted),
    ]
    return {"found": report.facts("Rate limit", found), "goals": report.goals(goals)}


def _set_limit(queue, limit: int, starts_per_second: float = 0) -> None:
    queue.db.query(
        'INSERT INTO queue_limit (name, "limit", rate_limit) VALUES (%s, %s, %s)'
        ' ON CONFLICT (name) DO UPDATE SET "limit" = excluded."limit", rate_limit = excluded.rate_limit',
        CHANNEL,
        limit,
        starts_per_second,
    )
