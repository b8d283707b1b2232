"""What a worker costs while it has nothing to do, what each process and slot takes, and what each job costs whom."""

import contextlib
import time
from dataclasses import dataclass

import psutil

from bench import contestants, report
from bench.jobs import WAIT_SECONDS
from bench.measure import Series

SCALING_PROCESSES = (1, 2, 4, 8)
SCALING_THREADS = 4
COST_JOBS = 4000
# Connections and slots of what many hosts would bring together, with jobs that leave the processor to them.
MANY = (8, 16)
MANY_WAIT_JOBS = 3000


def idle(options) -> dict:
    """CPU and transactions of a worker that has nothing to do."""
    rows = {}
    with contestants.ours_database() as queue:
        for processes in (1, 2):
            with contestants.ours_worker(queue, processes) as supervisor:
                queue.drain("nothing", 200)
                time.sleep(35)  # connections that jobs used are let go meanwhile, and have told the statistics
                family = [supervisor, *supervisor.children(recursive=True)]
                before = _cpu_seconds(family), _transactions(queue)
                time.sleep(options.seconds)
                used, asked = _cpu_seconds(family) - before[0], _transactions(queue) - before[1]
            rows[f"{processes} x 2: CPU, % of a core"] = 100 * used / options.seconds
            rows[f"{processes} x 2: transactions a minute"] = 60 * asked / options.seconds
    return {"found": report.facts(f"Idle worker, over {options.seconds:.0f} s", rows)}


def memory(options) -> dict:
    """Memory of the supervisor, of each process and of each slot."""
    unique = {}
    with contestants.ours_database() as queue:
        for threads in (2, 18):
            with contestants.ours_worker(queue, 2, threads) as supervisor:
                queue.drain("read", 1000)
                queue.drain("wait", 400)
                unique[threads] = [process.memory_full_info().uss / 2**20 for process in supervisor.children()]
                own = supervisor.memory_full_info()
                shared = supervisor.memory_info().rss / 2**20
    few, many = (sum(values) / len(values) for values in unique.values())
    rows = {
        "supervisor, resident, MiB": shared,
        "supervisor, its own, MiB": own.uss / 2**20,
        "each process with 2 slots, its own, MiB": few,
        "each process with 18 slots, its own, MiB": many,
        "each further slot, MiB": (many - few) / 16,
    }
    return {"found": report.facts("Memory", rows)}


def scaling(options) -> dict:
    """Jobs that wait, from 1 to 8 processes; then what each job costs the server and the workers."""
    rates, costs = {}, {}
    with contestants.ours_database() as queue:
        for processes in SCALING_PROCESSES:
            with contestants.ours_worker(queue, processes, SCALING_THREADS):
                queue.drain("nothing", 200)
                count = min(options.jobs or 200 * processes, 200 * processes)
                rates[f"{processes} x {SCALING_THREADS}"] = Series(
                    [queue.drain("wait", count) for _round in range(options.rounds)]
                )
        for title, job, processes, threads, count in (
            ("nothing, 1 x 2", "nothing", 1, 2, options.jobs or COST_JOBS),
            ("nothing, 2 x 2", "nothing", 2, 2, options.jobs or COST_JOBS),
            ("one ORM write, 2 x 2", "write", 2, 2, options.jobs or COST_JOBS),
            (f"waiting, {MANY[0]} x {MANY[1]}", "wait", *MANY, options.jobs or MANY_WAIT_JOBS),
        ):
            with contestants.ours_worker(queue, processes, threads) as supervisor:
                queue.drain("nothing", 20 * processes * threads)
                rounds = [_cost(queue, supervisor, job, count) for _round in range(options.rounds)]
                for field in Cost.__annotations__:
                    series = Series([getattr(cost, field) for cost in rounds])
                    costs.setdefault(field, {})[title] = series
    wanted = {name: int(name.split()[0]) * SCALING_THREADS / WAIT_SECONDS for name in rates}
    shown = report.table("Jobs that wait 50 ms", rates, "jobs/s", f"1 x {SCALING_THREADS}")
    for name, rate in wanted.items():
        shown[name]["share of the possible"] = rates[name].median / rate
    report.facts(
        "Share of what the slots could do", {name: row["share of the possible"] for name, row in shown.items()}
    )
    units = {
        "rate": "jobs/s",
        "server": "ms of the server's CPU a job",
        "workers": "ms of the workers' CPU a job",
        "wal": "bytes of WAL a job",
        "connections": "connections",
    }
    tables = {field: report.table("What a job costs", costs[field], unit) for field, unit in units.items()}
    return {"drain": shown, "costs": tables}


@dataclass
class Cost:
    """Of a drain: see `units` in `scaling`."""

    rate: float
    server: float
    workers: float
    wal: float
    connections: float


def _cost(queue, supervisor: psutil.Process, job: str, count: int) -> Cost:
    queue.db.query(queue.forget)
    family = [supervisor, *supervisor.children(recursive=True)]
    backends = _backends(queue)
    before = _cpu_seconds(family), _cpu_seconds(backends)
    begin = queue.driver("enqueue", job, count)
    stored = _wal(queue)
    queue.wait_until_drained()
    seconds = time.monotonic() - begin
    workers, server = _cpu_seconds(family) - before[0], _cpu_seconds(backends) - before[1]
    return Cost(
        count / seconds,
        1000 * server / count,
        1000 * workers / count,
        (_wal(queue) - stored) / count,
        len(backends),
    )


def _backends(queue) -> list[psutil.Process]:
    """Sessions of the workers, which must run on this machine."""
    rows = queue.db.query(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
    )
    return [psutil.Process(pid) for (pid,) in rows]


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    seconds = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # a session that a slot did not need any more
            seconds += sum(process.cpu_times()[:2])
    return seconds


def _transactions(queue) -> int:
    return queue.db.value("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")


def _wal(queue) -> int:
    return int(queue.db.value("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))
