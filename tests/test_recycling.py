"""Processes are replaced by what they used, and killed for what they must not use, without losing a job."""

import signal

import pytest

from tests.faults import keys
from tests.harness import Worker, wait_until


def change_modules(db):
    """What an installation or upgrade does at its end."""
    with db.env() as env:
        env.registry.registry_invalidated = True
        env.registry.signal_changes()


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--max-jobs=10", "jobs run"),
        ("--max-age=1", "reason=age"),
        ("--limit-memory-soft=1048576", "limit_memory_soft 1"),
    ],
)
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
    slow = db.enqueue_one("job_ledger", "slow", 3)
    with Worker(db) as worker:
        db.wait_for_state(slow, "started")
        change_modules(db)
        db.enqueue_one("job_ledger", "quick")
        wait_until(lambda: worker.logged("recycles itself"), what="a process notices")
        worker.signal(signal.SIGUSR1)
        wait_until(lambda: worker.logged("starts anew"), what="a new program")
        before = worker.logged("claiming paused")
        wait_until(lambda: worker.logged("claiming paused") > before, what="its process pauses")
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
