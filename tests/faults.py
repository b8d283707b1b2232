"""The faults that a queue must survive, each with real processes on a real server and a count over the ledger.

Every function takes sizes, so that the same code is a short test and a long soak. It returns the :class:`Count` that it
checked, or raises ``AssertionError``.
"""

import contextlib
import os
import random
import signal
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psutil

from tests import copying
from tests.harness import STALE_AFTER, Count, Database, Worker, addons_path_with, run_odoo, ticks, wait_until
from tools import databases


def keys(count, prefix="job"):
    return [f"{prefix}:{number}" for number in range(count)]


class Fleet:
    """Workers that are started again when their supervisor was killed."""

    def __init__(self, stack, database, count, **options):
        self._stack, self._database, self._options = stack, database, options
        self._workers = [self._start() for _worker in range(count)]
        self._retired = []
        for worker in self._workers:
            worker.wait_until_ready()

    def _start(self):
        return self._stack.enter_context(Worker(self._database, **self._options))

    def kill_one(self):
        """SIGKILL a random process, a supervisor as likely as any other."""
        victims = [process for worker in self._workers + self._retired for process in worker.processes()]
        if victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim = random.choice(victims)
                victim.kill()
                # only then is it seen that a supervisor is to be replaced
                wait_until(lambda: victim.status() == psutil.STATUS_ZOMBIE, what="the killed process ends")
        self.replace_dead()

    def replace_dead(self):
        for worker in self._workers.copy():
            if not worker.running:
                self._workers.remove(worker)
                self._retired.append(worker)
                self._workers.append(self._start())

    def stop(self):
        for worker in self._workers:
            worker.wait_until_ready()
        assert [worker.stop() for worker in self._workers] == [0] * len(self._workers)


def kill_storm(database, jobs, workers, processes, seconds, interval, job_seconds=0.05):
    """Processes of all kinds killed at random while jobs run."""
    database.enqueue("job_ledger", [(key, job_seconds) for key in keys(jobs)], max_retries=0)
    with ExitStack() as stack:
        fleet = Fleet(stack, database, workers, processes=processes)
        for _tick in ticks(seconds, interval):
            fleet.kill_one()
        database.wait_until_drained(120 + jobs * job_seconds)
        fleet.replace_dead()
        fleet.stop()
        return database.count(keys(jobs)).check()


def connection_storm(database, jobs, workers, processes, seconds, interval, restart, job_seconds=0.05):
    """Database sessions of all kinds ended at random while jobs run, and two crashes of the server."""
    database.enqueue("job_ledger", [(key, job_seconds) for key in keys(jobs)], max_retries=0)
    with ExitStack() as stack:
        fleet = Fleet(stack, database, workers, processes=processes)
        beats = int(seconds / interval)
        for beat, _tick in enumerate(ticks(seconds, interval)):
            if beat in (beats // 3, 2 * beats // 3):
                restart("immediate")
            elif pids := database.sessions():
                database.query("SELECT pg_terminate_backend(%s)", random.choice(pids))
        database.wait_until_drained(120 + jobs * job_seconds)
        fleet.stop()
        return database.count(keys(jobs)).check()


def frozen_worker(database, jobs, job_seconds=1.0):
    """A worker is stopped for longer than it takes to be given up, another takes over, then it wakes up."""
    database.enqueue("job_ledger", [(key, job_seconds) for key in keys(jobs)], max_retries=0)
    with Worker(database, processes=2) as frozen:
        frozen.wait_until_ready()
        wait_until(lambda: database.states().get("started", 0) >= 4, what="every slot is busy")
        frozen.signal_all(signal.SIGSTOP)
        with Worker(database, processes=2) as healthy:
            database.wait_until_drained(60 + 5 * STALE_AFTER + jobs * job_seconds)
            frozen.signal_all(signal.SIGCONT)
            wait_until(lambda: frozen.logged("taken for dead") == 2, what="both processes find out")
            assert healthy.stop() == 0
        again = keys(jobs, "again")
        database.enqueue("job_ledger", [(key,) for key in again])
        database.wait_until_drained()
        assert frozen.stop() == 0
    return database.count(keys(jobs) + again).check()


STUCK = {
    "sleeps in C": ("job_sleep", 60),
    "spins in Python": ("job_spin",),
    "waits in a query": ("job_sleep_in_database", 60),
    "hangs on a socket": ("job_wait_on_socket", 60),
}


def stuck_jobs(database, healthy):
    """Jobs that never end, each with a timeout, beside healthy ones."""
    stuck = {
        name: database.enqueue_one("job_ledger_then", f"stuck:{name}", *call, timeout=2, max_retries=1)
        for name, call in STUCK.items()
    }
    with Worker(database, concurrency=4, times={"max-backoff": 5}) as worker:
        worker.wait_until_ready()
        for job_id in stuck.values():
            database.wait_for_state(job_id, "started")
        healthy_ids = database.enqueue("job_ledger", [(key,) for key in keys(healthy)])
        for name, job_id in stuck.items():
            wait_until(lambda job_id=job_id: database.job(job_id)["attempts"] == 1, 2 + 5 + 5, f"{name}: stopped")
            retry_in = database.value(
                "SELECT extract(epoch FROM scheduled_at - ended_at)"
                " FROM queue_job JOIN queue_job_attempt ON job_id = queue_job.id WHERE queue_job.id = %s",
                job_id,
            )
            assert 4.5 < retry_in < 6, f"{name}: retried {retry_in} s later"
        wait_until(
            lambda: database.value("SELECT bool_and(state = 'done') FROM queue_job WHERE id = ANY(%s)", healthy_ids),
            what="the healthy jobs are done in the slots that got free",
        )
        for name, job_id in stuck.items():
            job = database.wait_for_state(job_id, "failed", timeout=40)
            assert "TimeoutJobError" in job["exc_info"], f"{name}: {job}"
        attempts = database.value("SELECT max(attempts) FROM queue_job WHERE id = ANY(%s)", healthy_ids)
        assert not attempts, "healthy jobs were counted as failed"
        assert worker.stop() == 0
    count = database.count(keys(healthy))
    assert count["failed"] == len(stuck)
    return Count(count, failed=0).check()


POISON = {
    "allocates without end": ("job_allocate", 0),
    "calls os._exit": ("job_exit_process",),
    "segfaults": ("job_segfault",),
}
LAST_WORDS = {
    "allocates without end": "MemoryError",
    "calls os._exit": "exit code 7",
    "segfaults": "SIGSEGV",
}


def poison_jobs(database, healthy):
    """Jobs that take their process with them, beside healthy ones."""
    expected = []
    with Worker(database, f"--limit-memory-hard={700 * 2**20}", processes=2) as worker:
        for name, call in POISON.items():
            # one kind at a time, so that none dies of another
            poison = database.enqueue_one("job_ledger_then", f"poison:{name}", *call, max_retries=1)
            beside = keys(healthy, name)
            database.enqueue("job_ledger", [(key, 0.02) for key in beside], max_retries=0)
            expected += beside
            database.wait_until_drained(90)
            job = database.job(poison)
            assert job["state"] == "failed", f"{name}: {job}"
            assert job["attempts"] == 2, f"{name}: {job}"
            assert LAST_WORDS[name] in job["exc_info"], f"{name}: {job['exc_info']}"
        assert worker.stop() == 0
    count = database.count(expected)
    assert count["failed"] == len(POISON)
    return Count(count, failed=0).check()


def one_counter(database, jobs, processes):
    """Everybody increments the same row."""
    with database.env() as env:
        target = env["test.job.target"].create({"name": "counter"})
        target_id = target.id
    database.enqueue_on(target_id, "job_increment", jobs)
    with Worker(database, processes=processes, concurrency=1) as worker:
        database.wait_until_drained(60 + jobs)
        assert worker.stop() == 0
        conflicts = worker.logged("concurrent update")
    counter = database.value("SELECT counter FROM test_job_target WHERE id = %s", target_id)
    attempts = database.value("SELECT sum(attempts) FROM queue_job")
    states = database.states()
    assert counter == jobs, f"{counter} of {jobs} increments, {states}"
    assert attempts == 0, f"{attempts} conflicts were counted as failures"
    assert conflicts, "no two of them ever met"
    assert states == {"done": jobs}, f"{states}"
    return Count(expected=jobs, once=counter, lost=0, repeated=0, foreign=0, started=0, failed=0)


MODULE = "job_worker_fault"


def write_module(folder, version):
    """Version 1 adds a model and a method, version 2 one more of each and a column."""
    folder = folder / MODULE
    folder.mkdir(exist_ok=True)
    manifest = {
        "name": "Installed while workers run",
        "version": f"19.0.{version}.0.0",
        "license": "LGPL-3",
        "author": "job_worker contributors",
        "depends": ["test_job_worker"],
    }
    (folder / "__manifest__.py").write_text(repr(manifest))
    (folder / "__init__.py").write_text("from . import models\n")
    source = "from odoo import fields, models\n"
    for number in range(1, version + 1):
        source += textwrap.dedent(f"""

            class Target{number}(models.Model):
                _inherit = "test.job.target"

                new_field_{number} = fields.Char()

                def job_new_{number}(self, key):
                    self.create({{"new_field_{number}": key}})
                    self.job_ledger(key)


            class Newcomer{number}(models.Model):
                _name = "test.job.newcomer{number}"
                _description = "Newcomer {number}"

                def job_newcomer(self, key):
                    self.env["test.job.target"].job_ledger(key)
        """)
    (folder / "models.py").write_text(source)


def module_changes(database, folder, load, processes=2):
    """A module is installed, then upgraded, while jobs run; there are jobs for what it brings before it is there."""
    environment = addons_path_with(folder, folder / "odoo.conf")
    expected = []
    with Worker(database, processes=processes, environment=environment) as worker:
        worker.wait_until_ready()
        for version, switch in ((1, "-i"), (2, "-u")):
            write_module(folder, version)
            expected += early(database, version, 5)
            expected += loaded(database, f"before {version}", load)
            with ThreadPoolExecutor() as executor:
                change = executor.submit(
                    run_odoo, database, switch, MODULE, "--stop-after-init", "--no-http", environment=environment
                )
                batch = 0
                while not change.done():
                    batch += 1
                    expected += loaded(database, f"during {version} {batch}", load // 10)
                    wait_until(lambda change=change: change.done() or database.unfinished() < load)
                status, output = change.result()
            assert status == 0, output[-3000:]
            expected += called(database, f"job_new_{version}", f"new {version}", load // 10)
            database.wait_until_drained(120)
        assert worker.stop() == 0
    attempts = database.value("SELECT max(attempts) FROM queue_job")
    assert attempts == 0, database.query("SELECT method_name, exc_info FROM queue_job WHERE attempts > 0 LIMIT 1")
    return database.count(expected).check()


def loaded(database, prefix, count):
    return called(database, "job_ledger", prefix, count)


def called(database, method, prefix, count):
    names = keys(count, prefix)
    # one retry would be counted, and none is to be needed
    database.enqueue(method, [(key,) for key in names], max_retries=1)
    return names


def early(database, version, count):
    """Jobs of a model that is yet to come, as another server that has it already would store them."""
    names = keys(count, f"early {version}")
    # stored as scheduled and set free once they name the newcomer, so that no worker sees them half made
    ids = database.enqueue("job_newcomer", [(key,) for key in names], max_retries=1, eta=3600)
    database.query(
        "UPDATE queue_job SET payload = jsonb_set(payload::jsonb, '{model}', to_jsonb(%s::text))::json,"
        " scheduled_at = NULL, is_due = true WHERE id = ANY(%s)",
        f"test.job.newcomer{version}",
        ids,
    )
    return names


UPGRADED = "job_worker_upgraded"


def write_upgrade(folder, version, jobs):
    """Jobs of the addon write down which version's code ran them; a migration stores some, and then takes its time."""
    sources = {
        "__manifest__.py": repr(
            {
                "name": "Upgraded while workers run",
                "version": f"19.0.{version}.0.0",
                "license": "LGPL-3",
                "author": "job_worker contributors",
                "depends": ["test_job_worker"],
            }
        ),
        "__init__.py": "from . import models",
        "models.py": f"""
            from odoo import models


            class Upgraded(models.AbstractModel):
                _name = "test.job.upgraded"
                _description = "Upgraded"

                def job_note(self, key):
                    self.env["test.job.target"].job_ledger(f"{{key}} by {version}")
        """,
        f"migrations/19.0.{version}.0.0/post-store.py": f"""
            from odoo import SUPERUSER_ID, api


            def migrate(cr, _version):
                upgraded = api.Environment(cr, SUPERUSER_ID, {{}})["test.job.upgraded"]
                for number in range({jobs}):
                    upgraded.with_delay(max_retries=1).job_note(f"{version}:{{number}}")
        """,
        f"migrations/19.0.{version}.0.0/end-work.py": """
            import time


            def migrate(cr, _version):
                time.sleep(2)
        """,
    }
    for name, source in sources.items():
        file = folder / UPGRADED / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))


def upgrades_that_store_jobs(database, folder, versions, jobs, load, processes=2):
    """Upgrades whose migrations store jobs, one after the other, while workers run other jobs."""
    environment = addons_path_with(folder, folder / "odoo.conf")
    expected = []
    write_upgrade(folder, 1, jobs)
    with ExitStack() as stack:
        workers = []
        for version in range(1, versions + 1):
            write_upgrade(folder, version, jobs)
            expected += loaded(database, f"before {version}", load)
            switch = "-u" if workers else "-i"
            status, output = run_odoo(
                database, switch, UPGRADED, "--stop-after-init", "--no-http", environment=environment
            )
            assert status == 0, output[-3000:]
            if workers:  # an installation runs no migration
                expected += [f"{version}:{number} by {version}" for number in range(jobs)]
            else:
                workers += [
                    stack.enter_context(Worker(database, processes=processes, environment=environment)) for _ in "ab"
                ]
            database.wait_until_drained(60)
        assert [worker.stop() for worker in workers] == [0, 0]
    attempts = database.value("SELECT max(attempts) FROM queue_job")
    assert attempts == 0, database.query("SELECT method_name, exc_info FROM queue_job WHERE attempts > 0 LIMIT 1")
    return database.count(expected).check()


def sigterm_under_load(database, rounds, jobs_per_round):
    """SIGTERM in the middle of the work, again and again."""
    expected = keys(rounds * jobs_per_round)
    database.enqueue("job_ledger", [(key, 0.05) for key in expected])
    for _round in range(rounds):
        done = database.states().get("done", 0)
        with Worker(database, processes=2) as worker:
            wait_until(lambda done=done: database.states().get("done", 0) > done + 5, what="it works")
            status = worker.stop()
            assert status == 0, f"exit status {status}"
            assert not worker.children(), "processes left"
        assert not database.states().get("started"), "jobs left started"
        assert not database.workers(), "a worker left without saying goodbye"
    with Worker(database, processes=2) as worker:
        database.wait_until_drained(60 + 0.05 * len(expected))
        assert worker.stop() == 0
    attempts = database.value("SELECT max(attempts) FROM queue_job")
    assert attempts == 0, "a clean shutdown was counted as a failure"
    return database.count(expected).check()


WRONG_CLOCK = '''
"""Every clock that Python code can ask for the time of day is {offset} seconds off, as on a host whose clock is."""

import datetime
import time

real_time, real_datetime = time.time, datetime.datetime
time.time = lambda: real_time() + {offset}
time.time_ns = lambda: int(time.time() * 1e9)


class _Meta(type):
    def __instancecheck__(cls, value):
        return isinstance(value, real_datetime)

    def __subclasscheck__(cls, other):
        return issubclass(other, real_datetime)


class _Datetime(real_datetime, metaclass=_Meta):
    @classmethod
    def now(cls, tz=None):
        return real_datetime.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return real_datetime.utcfromtimestamp(time.time())

    @classmethod
    def today(cls):
        return cls.now()


datetime.datetime = _Datetime
'''


def wrong_clock(database, folder, jobs, offset):
    """A worker on a host whose clock is hours wrong, beside one whose clock is right."""
    (folder / "sitecustomize.py").write_text(WRONG_CLOCK.format(offset=offset))
    environment = {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    clock = database.enqueue_one("job_clock")
    with Worker(database, environment=environment) as wrong:
        wrong.wait_until_ready()
        database.wait_for_state(clock, "done")
        seen = database.value(
            "SELECT (result::text)::float - extract(epoch FROM completed_at AT TIME ZONE 'UTC')"
            " FROM queue_job WHERE id = %s",
            clock,
        )
        assert abs(seen - offset) < 60, f"the worker's clock is off by {seen} s"
        soon = keys(jobs)
        database.enqueue("job_ledger", [(key,) for key in soon], eta=2)
        later = database.enqueue_one("job_ledger", "later", eta=3600)
        retried = database.enqueue_one("job_fail_times", "retried", 1)
        with Worker(database) as right:
            right.wait_until_ready()
            wait_until(lambda: database.unfinished() == 1, 20, "all but the later job end")
            assert database.job(later)["state"] == "pending", "a job ran an hour early"
            assert database.job(retried) == {**database.job(retried), "state": "done", "attempts": 1}
            early = database.value("SELECT count(*) FROM queue_job WHERE started_at < scheduled_at")
            late = database.value("SELECT max(extract(epoch FROM started_at - scheduled_at)) FROM queue_job")
            assert not early, f"{early} jobs began before their time"
            assert late < 5, f"a job began {late} s late"
            assert len(database.workers()) == 2, "one took the other for dead"
            assert not wrong.logged("recovered") + right.logged("recovered")
            assert [wrong.stop(), right.stop()] == [0, 0]
    database.query("DELETE FROM test_job_ledger WHERE key = 'try:retried'")
    return database.count(soon).check()


def copies_under_load(database, folder, copies, jobs_per_copy, job_seconds=0.1):
    """Copies are made at random moments, in all ways, while a worker for all databases runs the original's jobs."""
    expected, made = [], {}
    try:
        with Worker(None, f"--db-filter=^{database.name}", processes=2) as worker:
            worker.wait_until_ready()
            for number in range(copies):
                load = keys(jobs_per_copy, f"load {number}")
                expected += [f"{database.name}:{key}" for key in load]
                database.enqueue("job_ledger_here", [(key, job_seconds) for key in load], max_retries=0)
                left = random.randint(jobs_per_copy // 2, jobs_per_copy)
                wait_until(lambda left=left: database.unfinished() < left, what="a random moment")
                copy = Database(f"{database.name}_copy{number}")
                made[copy] = random.choice(copying.WAYS)
                made[copy](database, copy.name, folder)
            database.wait_until_drained(120 + jobs_per_copy * job_seconds)
            for copy, way in made.items():
                if way is copying.template:
                    answer_for_a_copy(worker, copy)
                copy.wait_for_state(copy.enqueue_one("job_ledger_here", "new"), "done", timeout=60)
                run_here = [key for key in copy.ledger() if not key.startswith(f"{database.name}:")]
                assert run_here == [f"{copy.name}:new"], f"{way.__name__}: {run_here}"
                assert not copy.unfinished(), f"{way.__name__}: {copy.states()}"
            assert worker.stop() == 0
    finally:
        for copy in made:
            copy.close()
            databases.drop(copy.name)
    return database.count(expected).check()


def answer_for_a_copy(worker, copy):
    """Tell a database what it is, once its worker asks."""
    wait_until(lambda: worker.logged(f"database left alone: database={copy.name}"), 60, "the worker asks")
    with copy.env() as env:
        env["queue.dashboard"].settle_copy(is_copy=True)
