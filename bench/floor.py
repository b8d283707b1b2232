"""The bare loop: what an Odoo job costs without a queue. `python -m bench.floor DATABASE`, a driver.

Each pass of the loop takes a cursor from Odoo's pool with `registry.cursor()`, makes an environment, calls the method
and commits; with `commit`, it also updates one row of its own first, as any queue must to remember that a job is done.
"""

import multiprocessing
import sys
import threading
import time

from odoo import SUPERUSER_ID, api, sql_db
from odoo.modules.module import initialize_sys_path
from odoo.modules.registry import Registry
from odoo.tools import config

from bench.driver import serve
from bench.jobs import ARGUMENTS, METHODS, TARGET

_fork = multiprocessing.get_context("fork")


def main() -> None:
    config.parse_config([], setup_logging=False)
    initialize_sys_path()
    registry = Registry(sys.argv[1])

    def run(job: str, processes: int, threads: int, count: int, commit: bool) -> float:
        """Seconds in which `count` calls are made, altogether."""
        with registry.cursor() as cr:
            targets = api.Environment(cr, SUPERUSER_ID, {})[TARGET["ours"]]
            records = targets.create([{"name": "floor"} for _number in range(2 * processes * threads)]).ids
        sql_db.close_all()  # a connection must not be shared with a fork
        slots = processes * threads
        start, end = _fork.Barrier(slots + 1), _fork.Barrier(slots + 1)

        def loop(slot: int) -> None:
            ids = records[2 * slot : 2 * slot + 2]
            call(registry, job, ids, commit)
            start.wait()
            for _number in range(count // slots):
                call(registry, job, ids, commit)
            end.wait()

        def process(number: int) -> None:
            loops = [threading.Thread(target=loop, args=(number * threads + thread,)) for thread in range(threads)]
            for thread in loops:
                thread.start()
            for thread in loops:
                thread.join()

        children = [_fork.Process(target=process, args=(number,), daemon=True) for number in range(processes)]
        for child in children:
            child.start()
        start.wait()
        begin = time.perf_counter()
        end.wait()
        seconds = time.perf_counter() - begin
        for child in children:
            child.join()
        return seconds * count / (count // slots * slots)

    serve({"run": run})


def call(registry: Registry, job: str, ids: list[int], commit: bool) -> None:
    with registry.cursor() as cr:
        env = api.Environment(cr, SUPERUSER_ID, {})
        getattr(env[TARGET["ours"]].browse(ids[0]), METHODS[job])(*ARGUMENTS.get(job, ()))
        if commit:
            cr.execute("UPDATE test_job_target SET name = 'done' WHERE id = %s", [ids[1]])


if __name__ == "__main__":
    main()
