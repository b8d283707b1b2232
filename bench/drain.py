"""How fast stored jobs are done, beside the peers and the floors."""

import re
import subprocess
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import contestants, report
from bench.jobs import TITLES
from bench.measure import interleaved
from tools import databases

PROCESSES = (1, 2, 4)
THREADS = 2
OURS_2 = "ours, 2 x 2"
BARE_2 = "bare loop, 2 x 2"
BARE_COMMIT_2 = "bare loop that writes a row, 2 x 2"

# As many as take a few seconds here.
JOBS = {"nothing": 4000, "read": 3000, "write": 2000, "cpu": 100, "wait": 120}
OCA_JOBS = {"nothing": 400, "read": 400, "write": 400, "cpu": 60, "wait": 80}
PROCRASTINATE_JOBS = 2000
PGQUEUER_JOBS = 50_000

CLAIM_AND_DONE = """
WITH best AS (
    SELECT id FROM bench_job WHERE state = 'pending' AND is_due
     ORDER BY channel, priority, COALESCE(scheduled_at, '-infinity'::timestamp), id
     LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE bench_job SET state = 'done', completed_at = now() FROM best WHERE bench_job.id = best.id;
"""


def drain(options) -> dict:
    """Jobs done a second, from the commit that stores them to the end of the last."""
    results = {}
    with ExitStack() as stack:
        ours = [stack.enter_context(contestants.ours(processes, THREADS)) for processes in PROCESSES]
        oca = stack.enter_context(contestants.oca())
        standalone = [stack.enter_context(kind()) for kind in (contestants.procrastinate, contestants.pgqueuer)]
        floor = stack.enter_context(contestants.floor())
        pgbench = stack.enter_context(Pgbench())
        for job, title in TITLES.items():
            count = min(options.jobs or JOBS[job], JOBS[job])
            measurements = {queue.name: partial(queue.drain, job, count) for queue in ours}
            measurements[oca.name] = partial(oca.drain, job, min(count, OCA_JOBS[job]))
            for name, commit in ((BARE_2, False), (BARE_COMMIT_2, True)):
                measurements[name] = partial(_bare, floor, job, count, commit)
            if job == "nothing":
                for queue, jobs in zip(standalone, (PROCRASTINATE_JOBS, PGQUEUER_JOBS), strict=True):
                    measurements[queue.name] = partial(queue.drain, job, min(jobs, options.jobs or jobs))
                measurements["pgbench, 4 clients"] = partial(pgbench.run, count)
            results[job] = report.table(f"Drain: {title}", interleaved(options.rounds, measurements), "jobs/s", OURS_2)
    return {"jobs": results, "goals": report.goals(_goals(results))}


def _bare(floor, job: str, count: int, commit: bool) -> float:
    return count / floor("run", job, 2, THREADS, count, commit)


def _goals(results: dict) -> list[tuple]:
    def ratio(job, other):
        return results[job][OURS_2]["median"] / results[job][other]["median"]

    wanted = [("read", "OCA queue_job", 10), ("nothing", "OCA queue_job", 15), ("nothing", "procrastinate", 3)]
    wanted += [("nothing", BARE_COMMIT_2, 0.7), ("nothing", BARE_2, 0.7)]
    return [
        (f"{TITLES[job]}: ours, 2 processes, to {other}", f">= {goal}", ratio(job, other), ratio(job, other) >= goal)
        for job, other, goal in wanted
    ]


class Pgbench:
    """`pgbench` with a claim and a `done` in one statement, on a copy of the table: what PostgreSQL alone can do."""

    def __enter__(self):
        self._name = databases.clone()
        self._db = contestants.Database(self._name)
        self._db.query("CREATE TABLE bench_job (LIKE queue_job INCLUDING ALL)")
        self._script = tempfile.NamedTemporaryFile("w", suffix=".sql")
        self._script.write(CLAIM_AND_DONE)
        self._script.flush()
        return self

    def __exit__(self, *_error):
        self._script.close()
        self._db.close()
        databases.drop(self._name)

    def run(self, count: int) -> float:
        """Statements a second."""
        self._db.query("TRUNCATE bench_job")
        self._db.query(
            "INSERT INTO bench_job (id, uuid, state, payload, channel, priority, is_due, user_id)"
            " SELECT n, gen_random_uuid()::text, 'pending', '{}', 'root', 10, true, 1 FROM generate_series(1, %s) n",
            count,
        )
        self._db.query("ANALYZE bench_job")
        program = _pgbench_program()
        command = [program, "-n", "-M", "prepared", "-c", "4", "-j", "2", "-t", str(count // 4)]
        done = subprocess.run(
            [*command, "-f", self._script.name, self._name], capture_output=True, text=True, check=True
        )
        return float(re.search(r"tps = ([\d.]+)", done.stdout)[1])


def _pgbench_program() -> Path | str:
    from tools.postgres import Server

    own = Server.own().programs / "pgbench"
    return own if own.exists() else "pgbench"
