"""Signals: what runs may finish, what must end is given back uncounted, nothing stays started."""

import os
import signal

import pytest

from tests.harness import Worker, wait_until


def outcomes(db, job_id):
    return [outcome for (outcome,) in db.query("SELECT outcome FROM queue_job_attempt WHERE job_id = %s", job_id)]


def assert_given_back(db, job_id):
    job = db.job(job_id)
    assert (job["state"], job["attempts"], job["worker_id"]) == ("pending", 0, None)
    assert not db.ledger(), "an interrupted job left something behind"


def test_sigterm_lets_running_jobs_finish_and_claims_no_more(db):
    running = db.enqueue_one("job_ledger", "running", 2)
    with Worker(db, concurrency=1) as worker:
        db.wait_for_state(running, "started")
        next_one = db.enqueue_one("job_ledger", "next")
        assert worker.stop() == 0
        assert db.job(running)["state"] == "done"
        assert db.job(next_one)["state"] == "pending"
        assert not db.workers()


def test_the_form_of_a_pending_job_says_that_the_only_worker_ends(db):
    with Worker(db, concurrency=1) as worker:
        running = db.enqueue_one("job_sleep", 60)
        db.wait_for_state(running, "started")
        worker.signal(signal.SIGTERM)
        job = db.enqueue_one("job_nothing")

        def standing():
            with db.env() as env:
                return env["queue.job"].browse(job).standing

        wait_until(lambda: "it ends when its running jobs have" in standing(), what="the form says so")


@pytest.mark.parametrize("stuck", [("job_spin",), ("job_sleep", 60)], ids=["in Python", "in C"])
def test_a_second_sigterm_gives_running_jobs_back_uncounted(db, stuck):
    running = db.enqueue_one("job_ledger_then", "stuck", *stuck)
    with Worker(db) as worker:
        db.wait_for_state(running, "started")
        worker.signal(signal.SIGTERM)
        wait_until(lambda: worker.logged("worker stopping"), what="it drains")
        assert worker.stop(timeout=15) == 0
        assert not worker.logged(" ERROR "), "what was asked for is no error"
    assert_given_back(db, running)


def test_a_sigterm_to_every_process_at_once_counts_once(db):
    """As a service manager sends it to a whole control group; the one of the supervisor comes on top."""
    running = db.enqueue("job_ledger", [("one", 3), ("two", 3)])
    with Worker(db, processes=2, concurrency=1) as worker:
        for job in running:
            db.wait_for_state(job, "started")
        worker.signal_all(signal.SIGTERM)
        assert worker.wait() == 0
    assert db.states() == {"done": 2}
    assert outcomes(db, running[0]) == outcomes(db, running[1]) == []


def test_a_second_sigterm_to_every_process_gives_running_jobs_back(db):
    running = db.enqueue_one("job_ledger_then", "stuck", "job_spin")
    with Worker(db) as worker:
        db.wait_for_state(running, "started")
        for told in (1, 2):
            worker.signal_all(signal.SIGTERM)
            wait_until(lambda told=told: worker.logged("worker stopping") or told == 2, what="it drains")
        assert worker.wait(15) == 0
    assert_given_back(db, running)


def test_a_second_sigterm_ends_the_service_while_a_job_holds_the_interpreter(db):
    with Worker(db, processes=2, concurrency=1) as worker:
        worker.wait_until_ready()
        holding = db.enqueue_one("job_hold_gil")
        db.wait_for_state(holding, "started")
        worker.signal(signal.SIGTERM)
        wait_until(lambda: worker.logged("worker stopping"), what="the other process drains")
        assert worker.stop(timeout=15) == 0
        assert worker.logged("worker process killed") == 1
    with Worker(db):
        wait_until(lambda: outcomes(db, holding) == ["died"], what="another worker takes the job back")


def test_the_shutdown_timeout_gives_running_jobs_back_uncounted(db):
    running = db.enqueue_one("job_ledger_then", "stuck", "job_sleep_in_database", 60)
    with Worker(db, "--shutdown-timeout=1") as worker:
        db.wait_for_state(running, "started")
        assert worker.stop(timeout=15) == 0
    assert_given_back(db, running)
    assert outcomes(db, running) == ["given_back"]


def test_sigterm_does_not_hurry_a_process_that_is_being_replaced(db):
    slow = db.enqueue_one("job_ledger", "slow", 3)
    with Worker(db, "--max-jobs=1", concurrency=2) as worker:
        db.wait_for_state(slow, "started")
        db.enqueue_one("job_ledger", "quick")
        wait_until(lambda: worker.logged("recycles itself"), what="the process asks to be replaced")
        assert worker.stop() == 0
    assert db.job(slow)["state"] == "done"
    assert outcomes(db, slow) == []


def test_sigusr1_pauses_and_sigusr2_resumes(db):
    with Worker(db) as worker:
        worker.wait_until_ready().signal(signal.SIGUSR1)
        wait_until(lambda: worker.logged("claiming paused"), what="it pauses")
        job = db.enqueue_one("job_ledger", "paused")
        wait_until(lambda: db.query("SELECT 1 FROM queue_worker WHERE state = 'paused'"), what="it shows")
        assert db.job(job)["state"] == "pending"
        worker.signal(signal.SIGUSR2)
        db.wait_for_state(job, "done")
        assert worker.logged("claiming resumed") == 1


def test_the_successor_of_a_process_that_died_stays_paused(db):
    with Worker(db) as worker:
        worker.wait_until_ready().signal(signal.SIGUSR1)
        wait_until(lambda: worker.logged("claiming paused"), what="it pauses")
        (paused,) = worker.children()
        job = db.enqueue_one("job_ledger", "paused")
        os.kill(paused, signal.SIGKILL)
        wait_until(lambda: worker.logged("claiming paused") == 2, what="its successor pauses")
        assert db.job(job)["state"] == "pending"
        worker.signal(signal.SIGUSR2)
        db.wait_for_state(job, "done")


def test_a_pause_asked_for_in_the_database_is_followed_within_a_heartbeat(db):
    with Worker(db) as worker:
        worker.wait_until_ready()
        with db.env() as env:
            env["queue.worker"].search([]).button_drain()
        wait_until(lambda: worker.logged("claiming paused"), 10, "it pauses")
        job = db.enqueue_one("job_ledger", "paused")
        wait_until(lambda: db.query("SELECT 1 FROM queue_worker WHERE state = 'paused'"), what="it shows")
        assert db.job(job)["state"] == "pending"
        with db.env() as env:
            env["queue.worker"].search([]).button_resume()
        db.wait_for_state(job, "done")


def test_children_of_a_killed_supervisor_finish_their_jobs_and_leave(db):
    running = db.enqueue_one("job_ledger", "running", 2)
    with Worker(db) as worker:
        db.wait_for_state(running, "started")
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: not worker.processes(), what="its child leaves")
        assert db.job(running)["state"] == "done"
        assert not db.workers()


def test_sigterm_while_the_registry_loads_ends_it_with_status_0(db):
    with Worker(db) as worker:
        wait_until(lambda: worker.logged("loading 1 modules"), what="it loads the registry")
        assert worker.stop() == 0
        assert not worker.logged("worker process started")
