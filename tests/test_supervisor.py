"""The parent of the worker processes outlives what happens to it and to them, and passes on what it was told."""

import os
import signal
import subprocess
import textwrap

import psutil
import pytest

from tests.harness import Database, Worker, ticks, wait_until
from tools import databases


@pytest.fixture
def pair():
    """Two databases of the test's own."""
    pair = [Database(databases.clone()), Database(databases.clone())]
    yield pair
    for database in pair:
        database.close()
        databases.drop(database.name)


def test_a_fork_that_fails_is_tried_again(db, tmp_path):
    """The host may be out of memory or of processes for a while."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(
            """
            import os

            failures, fork = [1, 2], os.fork

            def fork_or_fail():
                if failures:
                    raise BlockingIOError(failures.pop(), "no process to be had")
                return fork()

            os.fork = fork_or_fail
            """
        )
    )
    job = db.enqueue_one("job_ledger", "done")
    with Worker(db, environment={"PYTHONPATH": str(tmp_path)}) as worker:
        db.wait_for_state(job, "done")
        assert worker.logged("worker process can't be started: error=BlockingIOError") == 2
        assert worker.stop() == 0


def test_an_error_of_the_supervisor_leaves_no_process_alone(db, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(
            """
            import os

            waitpid, errors = os.waitpid, [OSError("odd")]

            def waitpid_or_fail(pid, options):
                if pid == -1 and errors:
                    raise errors.pop()
                return waitpid(pid, options)

            os.waitpid = waitpid_or_fail
            """
        )
    )
    with Worker(db, environment={"PYTHONPATH": str(tmp_path)}) as worker:
        job = db.enqueue_one("job_ledger", "done")
        db.wait_for_state(job, "done")
        assert worker.logged("unexpected error in the worker: where=supervisor") == 1
        assert worker.stop() == 0


def test_jobs_of_every_database_of_a_process_that_died_are_taken_back_at_once(pair):
    times = {"stale-after": 60, "heartbeat-interval": 15}
    jobs = [database.enqueue_one("job_sleep", 60) for database in pair]
    with Worker(None, "-d", pair[0].name, "-d", pair[1].name, times=times) as worker:
        for database, job in zip(pair, jobs, strict=True):
            database.wait_for_state(job, "started")
        (child,) = worker.children()
        os.kill(child, signal.SIGKILL)
        for database, job in zip(pair, jobs, strict=True):
            wait_until(lambda db=database, job=job: db.job(job)["attempts"] == 1, 20, "its job is taken back")
            assert "killed by SIGKILL" in database.job(job)["exc_info"]


def test_what_a_successor_that_died_had_not_come_to_is_left_to_the_next(db):
    job = db.enqueue_one("job_sleep", 60)
    with Worker(db, times={"stale-after": 60, "heartbeat-interval": 15}) as worker:
        db.wait_for_state(job, "started")
        with db.locked_table("queue_worker"):
            for number in (2, 3):
                os.kill(worker.children()[0], signal.SIGKILL)
                wait_until(lambda number=number: worker.logged("worker process started") == number, what="a successor")
        wait_until(lambda: db.job(job)["attempts"] == 1, 20, "its job is taken back")


def test_sighup_starts_the_program_anew_while_jobs_go_on(db):
    slow = db.enqueue_one("job_ledger", "slow", 6)
    with Worker(db) as worker:
        db.wait_for_state(slow, "started")
        (old,) = worker.children()
        worker.signal(signal.SIGHUP)
        wait_until(lambda: worker.logged("worker process started") == 2, what="a new process")
        assert worker.running
        quick = db.enqueue_one("job_ledger", "quick")
        db.wait_for_state(quick, "done")
        assert db.job(slow)["state"] == "started"
        db.wait_for_state(slow, "done")
        wait_until(lambda: old not in worker.children(), what="the old process leaves")
        assert worker.stop() == 0
    assert db.ledger() == {"slow": 1, "quick": 1}


def test_a_program_that_starts_anew_does_not_end_for_a_database_that_can_not_be_served(fresh_db):
    """With it would end what its processes still run, in a container."""
    slow = fresh_db.enqueue_one("job_ledger", "slow", 8)
    with Worker(fresh_db) as worker:
        fresh_db.wait_for_state(slow, "started")
        fresh_db.query("UPDATE ir_module_module SET state = 'uninstalled' WHERE name = 'job_worker'")
        worker.signal(signal.SIGHUP)
        wait_until(lambda: worker.logged("worker process started") == 2, what="a new process")
        fresh_db.wait_for_state(slow, "done")
        fresh_db.query("UPDATE ir_module_module SET state = 'installed' WHERE name = 'job_worker'")
        job = fresh_db.enqueue_one("job_ledger", "again")
        fresh_db.wait_for_state(job, "done", timeout=60)
        assert worker.stop() == 0


def test_jobs_of_a_process_of_the_former_program_that_died_are_taken_back_at_once(db):
    """Another that works is told of it, as there is nobody who takes its place."""
    slow = db.enqueue_one("job_sleep", 60, max_retries=1)
    with Worker(db, times={"stale-after": 60, "heartbeat-interval": 15}) as worker:
        db.wait_for_state(slow, "started")
        (old,) = worker.children()
        worker.signal(signal.SIGHUP)
        wait_until(lambda: worker.logged("worker started") == 2, what="a new process")
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: worker.logged(f"worker process ended: pid={old} how=its process was killed"), what="its end")
        wait_until(lambda: db.job(slow)["attempts"] == 1, 20, "its job is taken back")


def test_sigquit_logs_what_every_thread_is_doing_and_ends_nothing(db):
    running = db.enqueue_one("job_ledger", "running", 2)
    with Worker(db) as worker:
        db.wait_for_state(running, "started")
        worker.signal(signal.SIGQUIT)
        wait_until(lambda: worker.logged("in job_ledger"), what="the stack of the job's thread")
        assert worker.logged("in _tick"), "the stack of the supervisor"
        db.wait_for_state(running, "done")
        assert worker.logged("worker process started") == 1
        assert worker.stop() == 0


@pytest.mark.parametrize("end", ["killed", "replaced", "started anew"])
def test_a_pause_by_the_button_outlives_the_process(db, end):
    with Worker(db, *(["--max-age=3"] if end == "replaced" else [])) as worker:
        worker.wait_until_ready()
        with db.env() as env:
            env["queue.worker"].search([]).button_drain()
        wait_until(lambda: worker.logged("claiming paused"), 10, "it pauses")
        if end == "killed":
            os.kill(worker.children()[0], signal.SIGKILL)
        elif end == "started anew":
            worker.signal(signal.SIGHUP)
        wait_until(lambda: worker.logged("worker started") >= 2, what="a successor")
        job = db.enqueue_one("job_ledger", "paused")
        wait_until(lambda: worker.logged("claiming paused") >= 2, what="the successor pauses")
        for _tick in ticks(2, 0.5):
            assert db.job(job)["state"] == "pending"
        with db.env() as env:
            env["queue.worker"].search([]).button_resume()
        db.wait_for_state(job, "done")


CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.mark.skipif(
    subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode != 0,
    reason="needs the right to unshare",
)
def test_the_first_process_of_a_container_is_told_as_any_other(db):
    """The system has no default action for its signals, and gives it the orphans."""
    slow = db.enqueue_one("job_ledger", "slow", 6)
    with Worker(db, prefix=CONTAINER) as worker:
        db.wait_for_state(slow, "started")
        (first,) = psutil.Process(worker.pid).children()
        first.send_signal(signal.SIGHUP)
        wait_until(lambda: worker.logged("worker started") == 2, what="a new process")
        db.wait_for_state(db.enqueue_one("job_ledger", "quick"), "done")
        assert db.job(slow)["state"] == "started"
        for process in worker.processes():
            if process.pid != worker.pid:
                process.send_signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert db.states() == {"done": 2}
