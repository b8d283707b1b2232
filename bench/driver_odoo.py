"""Driver of an Odoo queue, job_worker or OCA queue_job: `python -m bench.driver_odoo DATABASE QUEUE`."""

import sys
import time

from odoo import SUPERUSER_ID, api
from odoo.modules.module import initialize_sys_path
from odoo.modules.registry import Registry
from odoo.tools import config

from bench.driver import serve
from bench.jobs import ARGUMENTS, METHODS, TARGET

RESULT_POLL_SECONDS = 0.005
FUNCTIONS = ("enqueue", "spread", "ledger", "one_by_one", "one_each", "group", "latency")


def main() -> None:
    database, queue = sys.argv[1:]
    config.parse_config([], setup_logging=False)
    initialize_sys_path()
    driver = OdooAgent(database, queue)
    serve({name: getattr(driver, name) for name in FUNCTIONS})


class OdooAgent:
    """Stores jobs through the public interface of the queue."""

    def __init__(self, database: str, queue: str):
        if queue == "oca":
            from odoo.addons.queue_job.delay import group
        else:
            from odoo.addons.job_worker.delay import group
        self._make_group = group
        self._model = TARGET[queue]
        self._registry = Registry(database)
        with self._registry.cursor() as cr:
            self._ids = self._env(cr)[self._model].create([{"name": "target"} for _number in range(1000)]).ids

    def _env(self, cr):
        return api.Environment(cr, SUPERUSER_ID, {})

    def _calls(self, env, job: str, count: int, options: dict) -> list:
        """Delayables of `job`, on one record after the other."""
        method, arguments = METHODS[job], ARGUMENTS.get(job, ())
        ids = self._ids if job in ("read", "write") else [False]
        records = [env[self._model].browse(ids[number % len(ids)] or ()) for number in range(count)]
        return [getattr(record.delayable(**options), method)(*arguments) for record in records]

    def enqueue(self, job: str, count: int, options: dict | None = None) -> float:
        """Store jobs in one transaction; the moment its commit began, by the machine's monotonic clock."""
        with self._registry.cursor() as cr:
            self._make_group(*self._calls(self._env(cr), job, count, options or {})).delay()
            cr.flush()
            return time.monotonic()  # the cursor commits when it is left

    def spread(self, count: int, channels: int) -> float:
        """Store empty jobs, over `channel0`, `channel1` and so on if there are several; the moment the commit began."""
        with self._registry.cursor() as cr:
            target = self._env(cr)[self._model]
            names = [f"channel{number}" for number in range(channels)] if channels > 1 else ["root"]
            calls = [target.delayable(channel=names[number % len(names)]) for number in range(count)]
            self._make_group(*(call.job_nothing() for call in calls)).delay()
            cr.flush()
            return time.monotonic()

    def ledger(self, count: int, seconds: float, channel: str) -> None:
        """Store jobs that write down when they began and ended."""
        with self._registry.cursor() as cr:
            target = self._env(cr)[self._model]
            calls = (target.delayable(channel=channel).job_ledger(str(number), seconds) for number in range(count))
            self._make_group(*calls).delay()

    def one_by_one(self, count: int) -> float:
        """Seconds that `count` calls of `with_delay()` take, in one transaction and with its commit."""
        with self._registry.cursor() as cr:
            target = self._env(cr)[self._model].browse(self._ids[0])
            begin = time.perf_counter()
            for _number in range(count):
                target.with_delay().job_nothing()
            cr.commit()
            return time.perf_counter() - begin

    def one_each(self, count: int) -> float:
        """Seconds that `count` calls of `with_delay()` take, each with a commit of its own."""
        with self._registry.cursor() as cr:
            target = self._env(cr)[self._model].browse(self._ids[0])
            begin = time.perf_counter()
            for _number in range(count):
                target.with_delay().job_nothing()
                cr.commit()
            return time.perf_counter() - begin

    def group(self, count: int) -> float:
        """Seconds to store a group of `count`, from the capture of the calls to the commit."""
        with self._registry.cursor() as cr:
            target = self._env(cr)[self._model].browse(self._ids[0])
            begin = time.perf_counter()
            self._make_group(*(target.delayable().job_nothing() for _number in range(count))).delay()
            cr.commit()
            return time.perf_counter() - begin

    def latency(self, count: int) -> list[list[float]]:
        """For each of `count` jobs, seconds from the begin and the return of the commit to the method's first line.

        Each is stored when the one before has ended and the worker is idle.
        """
        latencies = []
        with self._registry.cursor() as cr:
            for _number in range(count):
                job = self._env(cr)[self._model].with_delay().job_clock()
                cr.flush()
                begin = time.time()
                cr.commit()
                end = time.time()
                began = None
                while began is None:
                    time.sleep(RESULT_POLL_SECONDS)
                    cr.execute("SELECT result FROM queue_job WHERE id = %s", [job.id])
                    began = cr.fetchone()[0]
                    cr.rollback()
                latencies.append([began - begin, began - end])
        return latencies


if __name__ == "__main__":
    main()
