"""From the commit that stores a job to the first line of its method, on an idle worker."""

from contextlib import ExitStack

from bench import contestants, report
from bench.measure import Series, percentile

JOBS = 500
PERCENTS = (50, 95, 99)


def latency(options) -> dict:
    """Milliseconds from the commit to the method's first line, one job at a time, by one clock."""
    count = max((options.jobs or JOBS) // options.rounds, 1)
    with ExitStack() as stack:
        queues = [
            stack.enter_context(kind(2)) for kind in (contestants.ours, contestants.procrastinate, contestants.pgqueuer)
        ]
        measured = {queue.name: [] for queue in queues}
        for _round in range(options.rounds):
            for queue in queues:
                measured[queue.name] += queue.driver("latency", count)
    results = {}
    for number, since in enumerate(("since the commit began", "since the commit returned")):
        rows = {}
        for name, pairs in measured.items():
            values = [pair[number] * 1000 for pair in pairs]
            for percent in PERCENTS:
                rows[f"{name}, p{percent}"] = Series([percentile(values, percent)])
        results[since] = report.table(f"Idle latency {since}", rows, "ms")
    ours = results["since the commit began"]
    p50, p99 = (ours[f"ours, 2 x 2, p{percent}"]["median"] for percent in (50, 99))
    goals = [("p50, ms", "<= 3", p50, p50 <= 3), ("p99, ms", "<= 8", p99, p99 <= 8)]
    return {"samples": len(next(iter(measured.values()))), "series": results, "goals": report.goals(goals)}
