"""Processes are replaced by what they used, and killed for what they must not use, without losing a job."""

import os
import resource
import signal

import psutil
import pytest

from tests.faults import keys
from tests.harness import Worker, ticks, wait_until
from tools.paths import ROOT

MIB = 2**20


def change_modules(db):
    """What an upgrade of an addon does at its end, after its code was changed."""
    os.utime(ROOT / "test_job_worker" / "__init__.py")
    db.query("UPDATE ir_module_module SET write_date = clock_timestamp() WHERE name = 'test_job_worker'")
    with db.env() as env:
        env.registry.registry_invalidated = True
        env.registry.signal_changes()


@pytest.mark.parametrize(("option", "reason"), [("--max-jobs=10", "jobs run"), ("--max-age=1", "reason=age")])
def test_a_process_is_replaced_when_it_has_done_enough(db, option, reason):
    db.enqueue("job_ledger", [(key, 0.1) for key in keys(60)], max_retries=1)
    with Worker(db, option) as worker:
        db.wait_until_drained()
        wait_until(lambda: worker.logged("worker process started") > 1, what="a successor")
        wait_until(lambda: worker.logged("worker stopped"), what="the first one ends")
        assert worker.stop() == 0
        assert worker.logged(reason), worker.log()[-3000:]
    assert db.value("SELECT max(attempts) FROM queue_job") == 0
    db.count(keys(60)).check()


def test_a_process_that_has_grown_over_the_soft_limit_takes_no_more_jobs_and_is_replaced(db):
    with Worker(db, f"--limit-memory-soft={500 * 2**20}") as worker:
        big = db.enqueue_one("job_map", 600, 4)
        wait_until(lambda: worker.logged("limit_memory_soft 500"), what="it finds that it has too much")
        wait_until(lambda: worker.logged("worker process started") == 2, what="a successor beside it")
        assert db.job(big)["state"] == "started"
        job = db.enqueue_one("job_ledger", "next")
        db.wait_for_state(job, "done")
        db.wait_for_state(big, "done")
        assert worker.stop() == 0


def test_a_soft_limit_below_an_empty_worker_is_warned_of_and_replaces_nobody(db):
    with Worker(db, "--limit-memory-soft=1048576", processes=2) as worker:
        worker.wait_until_ready()
        for key in keys(12):
            db.wait_for_state(db.enqueue_one("job_ledger", key), "done")
        for _tick in ticks(2, 0.5):
            assert worker.logged("worker process started") == 2
        assert worker.logged("limit_memory_soft is below what a worker needs") == 2
        assert worker.stop() == 0


@pytest.mark.parametrize("option", ["--max-jobs=3", "--max-age=1", f"--limit-memory-soft={300 * 2**20}"])
def test_processes_that_wait_for_slow_jobs_do_not_add_up(db, option):
    """Whoever is to be replaced goes on working until there is room for a successor beside it."""
    slow = ("job_map", 300, 15) if "memory" in option else ("job_ledger", "slow", 15)
    first = db.enqueue_one(*slow)
    with Worker(db, option, processes=1, concurrency=2) as worker:
        db.wait_for_state(first, "started")
        generations = most = 1
        for number, _tick in enumerate(ticks(12, 0.2)):
            if worker.logged("worker process started") > generations:
                generations += 1
                db.enqueue_one(*slow)
            db.enqueue_one("job_ledger", f"quick {number}")
            most = max(most, len(worker.children()))
            assert len(db.sessions()) <= 2 * (2 + 4), "of two slots each, the worker's own and those of a start"
        assert most == 2
        db.wait_until_drained(90)
        assert worker.stop() == 0
    assert db.value("SELECT count(*) FROM queue_job_attempt") == 0


def test_a_process_with_nothing_to_do_is_replaced_while_another_still_finishes_its_jobs(db):
    slow = db.enqueue_one("job_ledger", "slow", 12)
    with Worker(db, "--max-jobs=1") as worker:
        db.wait_for_state(slow, "started")
        for number in range(1, 4):
            db.wait_for_state(db.enqueue_one("job_ledger", f"quick {number}"), "done")
            wait_until(lambda number=number: worker.logged("worker stopping") == number, what="it is to be replaced")
            wait_until(lambda number=number: worker.logged("worker process started") == number + 1, what="a successor")
            assert len(worker.children()) <= 2
        assert db.job(slow)["state"] == "started"
        assert worker.stop() == 0
    assert db.states() == {"done": 4}


def test_stacks_that_threads_may_grow_to_are_no_memory(db):
    """Many databases have many threads: their stacks count as data by their largest size."""
    usual = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (200 * 2**20, usual[1]))
    try:
        with Worker(db, f"--limit-memory-hard={700 * 2**20}", concurrency=6) as worker:
            db.enqueue("job_ledger", [(key, 0.1) for key in keys(20)])
            db.wait_until_drained()
            assert worker.logged("worker process started") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, usual)
    db.count(keys(20)).check()


def test_a_job_that_asks_for_more_than_the_hard_limit_fails_alone(db):
    with Worker(db, f"--limit-memory-hard={700 * 2**20}", "--limit-memory-soft=0", concurrency=6) as worker:
        greedy = db.enqueue_one("job_allocate", 2000, max_retries=1)
        assert "MemoryError" in db.wait_for_state(greedy, "failed")["exc_info"]
        assert worker.logged("worker process started") == 1


def test_a_process_over_the_hard_limit_is_killed_and_its_job_says_so(db):
    job = db.enqueue_one("job_map", 900, 60, max_retries=1)
    with Worker(db, f"--limit-memory-hard={700 * 2**20}", "--limit-memory-soft=0") as worker:
        assert "SIGKILL: memory" in db.wait_for_state(job, "failed")["exc_info"]
        assert worker.logged("worker process killed") == 2
        healthy = db.enqueue_one("job_ledger", "healthy")
        db.wait_for_state(healthy, "done")


def test_a_long_job_of_the_old_code_finishes_beside_the_new_program(db):
    """After an upgrade the supervisor executes itself anew, and knows the process that still runs a job."""
    slow = db.enqueue_one("job_ledger", "slow", 12)
    with Worker(db) as worker:
        db.wait_for_state(slow, "started")
        (old,) = worker.children()
        change_modules(db)
        db.enqueue("job_ledger", [(key,) for key in keys(20)])
        wait_until(lambda: worker.logged("starts anew"), what="a new program")
        wait_until(lambda: db.unfinished() == 1, what="the new process works")
        assert db.job(slow)["state"] == "started"
        db.wait_for_state(slow, "done")
        wait_until(lambda: old not in worker.children(), what="the old process leaves")
        assert len(worker.children()) == 1
        assert worker.stop() == 0
        assert worker.logged("modules have changed") < 5, "it claimed what it had given back"
    db.count(["slow", *keys(20)]).check()
    assert db.value("SELECT max(attempts) FROM queue_job") == 0


def test_a_new_program_that_is_stopped_before_it_has_loaded_waits_for_the_old_process(db):
    slow = db.enqueue_one("job_ledger", "slow", 12)
    with Worker(db) as worker:
        db.wait_for_state(slow, "started")
        change_modules(db)
        db.enqueue_one("job_ledger", "quick")
        wait_until(lambda: worker.logged("starts anew"), what="a new program")
        started = worker.logged("worker process started")
        assert worker.stop() == 0
        assert db.job(slow)["state"] == "done"
        assert worker.logged("worker process started") == started


def test_a_pause_outlives_the_program_that_was_told(db):
    with Worker(db) as worker:
        worker.wait_until_ready().signal(signal.SIGUSR1)
        wait_until(lambda: worker.logged("claiming paused"), what="it pauses")
        worker.signal(signal.SIGHUP)
        wait_until(lambda: worker.logged("starts anew"), what="a new program")
        wait_until(lambda: worker.logged("claiming paused") == 2, what="its process pauses")
        job = db.enqueue_one("job_ledger", "paused")
        assert db.job(job)["state"] == "pending"
        worker.signal(signal.SIGUSR2)
        db.wait_for_state(job, "done")


def test_a_job_that_is_stored_with_a_change_of_a_setting_sees_the_change(db):
    """Odoo tells other processes some time after the commit; a worker may have begun the job by then."""
    with Worker(db):
        for value in ("one", "two", "three"):
            with db.env() as env:
                env["ir.config_parameter"].set_param("job_worker.test", value)
                job = env["test.job.target"].with_delay().job_parameter("job_worker.test").id
                env.cr.commit()
                env.registry.cache_invalidated.clear()  # it never comes to telling them
            db.wait_for_state(job, "done")
            assert db.value("SELECT result #>> '{}' FROM queue_job WHERE id = %s", job) == value


def test_what_big_jobs_took_is_not_kept(db):
    big = "x" * 4 * MIB
    db.enqueue("job_nothing", [()] * 8)
    with Worker(db, concurrency=4) as worker:
        db.wait_until_drained()
        process = psutil.Process(*worker.children())
        before = process.memory_info().rss
        db.enqueue("job_succeed", [(big,)] * 40)
        db.enqueue("job_fail", [(big,)] * 20, max_retries=1)
        db.wait_until_drained()
        wait_until(lambda: process.memory_info().rss - before < 100 * MIB, 45, f"{process.memory_info()} is given back")
