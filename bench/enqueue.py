"""How fast jobs are stored."""

from functools import partial

from bench import contestants, report
from bench.measure import interleaved

ONE_BY_ONE = 500
GROUP = 10_000


def enqueue(options) -> dict:
    """Jobs stored a second, one by one and as a group."""
    count, group_count = options.jobs or ONE_BY_ONE, options.jobs or GROUP
    with contestants.ours_database() as ours, contestants.oca_database() as oca:
        results = {}
        for title, function, jobs in (
            ("with_delay(), one transaction", "one_by_one", count),
            ("with_delay(), a commit each", "one_each", count),
            (f"a group of {group_count:,}", "group", group_count),
        ):
            measurements = {queue.name: partial(_store, queue, function, jobs) for queue in (ours, oca)}
            series = interleaved(options.rounds, measurements)
            results[title] = report.table(f"Enqueue: {title}", series, "jobs/s", oca.name)
    one, _each, group = (rows["ours"]["ratio"] for rows in results.values())
    goals = [
        ("one by one, to OCA queue_job", ">= 5", one, one >= 5),
        (f"a group of {group_count:,}, to OCA queue_job", ">= 20", group, group >= 20),
    ]
    return {"series": results, "goals": report.goals(goals)}


def _store(queue, function: str, count: int) -> float:
    rate = count / queue.driver(function, count)
    queue.db.query(queue.forget)
    return rate
