"""Attempts that lose their job, or are to be stopped, and do not want to."""

import logging
import signal
import threading

from tests.harness import Worker, wait_until, worker_thread

from odoo.addons.job_worker.worker import monitor  # isort: skip


def take_away(db, job_id):
    """What the recovery of a job and another worker's claim do to the attempt that had it."""
    db.query(
        "UPDATE queue_job SET claim_seq = nextval('queue_job_claim_seq'), worker_id = %s WHERE id = %s", "other", job_id
    )


def hand_out_to_nobody(db, job_id):
    db.query("UPDATE queue_job SET state = 'cancelled' WHERE id = %s", job_id)


def test_a_job_that_commits_by_itself_can_do_so(db):
    with worker_thread(db):
        job = db.enqueue_one("job_commit_halfway", "half", 0)
        db.wait_for_state(job, "done")
    assert db.ledger() == {"half:first": 1, "half:second": 1}


def test_a_job_that_commits_by_itself_cannot_after_it_lost_its_job(db):
    db.query(
        "INSERT INTO queue_worker (name, state, last_heartbeat) VALUES ('other', 'running', now() + interval '1 h')"
    )
    with worker_thread(db):
        job = db.enqueue_one("job_commit_halfway", "half", 0.8)
        db.wait_for_state(job, "started")
        take_away(db, job)
    assert db.job(job)["worker_id"] == "other"
    assert not db.ledger()


def test_an_attempt_that_lost_its_job_is_interrupted_and_the_worker_goes_on(db):
    db.query(
        "INSERT INTO queue_worker (name, state, last_heartbeat) VALUES ('other', 'running', now() + interval '1 h')"
    )
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_ledger_then", "lost", "job_spin")
        db.wait_for_state(job, "started")
        take_away(db, job)
        healthy = db.enqueue_one("job_ledger", "healthy")
        db.wait_for_state(healthy, "done")
    assert db.job(job)["worker_id"] == "other"
    assert db.ledger() == {"healthy": 1}


def test_cancelling_a_running_job_stops_it(db):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_ledger_then", "cancelled", "job_sleep_in_database", 60)
        db.wait_for_state(job, "started")
        with db.env() as env:
            env["queue.job"].browse(job).button_cancelled()
        assert db.wait_for_state(job, "cancelled", timeout=10)["attempts"] == 0
    assert not db.ledger()


def test_cancelling_between_the_last_line_and_the_commit_undoes_the_job(db):
    with worker_thread(db):
        job = db.enqueue_one("job_ledger", "cancelled", 0.5)
        db.wait_for_state(job, "started")
        db.query("UPDATE queue_job SET cancel_requested = true WHERE id = %s", job)
        db.wait_for_state(job, "cancelled")
    assert not db.ledger()


def test_a_job_that_holds_the_interrupt_back_costs_its_process_and_commits_nothing(db):
    with Worker(db, concurrency=2) as worker:
        stubborn = db.enqueue_one("job_hold_on", "stubborn", 12, timeout=1, max_retries=1)
        db.wait_for_state(stubborn, "started")
        wait_until(lambda: db.job(stubborn)["attempts"] == 1, 1 + 5 + 5, "it is stopped")
        assert "TimeoutJobError" in db.job(stubborn)["exc_info"]
        healthy = db.enqueue_one("job_ledger", "healthy")
        db.wait_for_state(healthy, "done")
        db.wait_for_state(stubborn, "failed")
        wait_until(lambda: worker.logged("could not be interrupted") == 2, what="its processes are replaced")
        assert worker.stop() == 0
    assert db.ledger() == {"healthy": 1}


def test_what_follows_the_commit_of_a_job_may_fail_without_undoing_it(db):
    with db.env() as env:
        target = env["test.job.target"]
        parent = target.delayable(max_retries=1).job_fail_after_commit("parent")
        child = target.delayable().job_ledger("child")
        parent.on_done(child)
        jobs = parent.delay()
        parent_id = min(jobs.ids if hasattr(jobs, "ids") else [job.id for job in jobs])
    with worker_thread(db):
        db.wait_until_drained(20)
    assert db.job(parent_id)["state"] == "done"
    assert db.job(parent_id)["attempts"] == 0
    assert db.ledger() == {"parent": 1, "child": 1}


def test_a_job_that_exits_the_interpreter_fails_alone(db):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_fail", "system_exit", max_retries=1)
        assert "SystemExit" in db.wait_for_state(job, "failed", timeout=15)["exc_info"]
        healthy = db.enqueue_one("job_ledger", "healthy")
        db.wait_for_state(healthy, "done")


def test_a_job_that_holds_the_interpreter_costs_its_process_and_fails_by_its_retries(db):
    impatient = {"JOB_WORKER_SHORTEST_SILENCE": "1"}
    with Worker(db, times={"stale-after": 5}, environment=impatient) as worker:
        holding = db.enqueue_one("job_hold_gil", timeout=1, max_retries=1)
        db.wait_for_state(holding, "started")
        healthy = db.enqueue_one("job_ledger", "healthy")
        db.wait_for_state(healthy, "done")
        failed = db.wait_for_state(holding, "failed")
        assert failed["attempts"] == 2
        assert "SIGKILL: it did not answer for 4 s" in failed["exc_info"]
        assert worker.stop() == 0
    assert db.ledger() == {"healthy": 1}


def test_a_job_interrupted_while_it_waits_for_a_lock_to_log_leaves_the_lock_free(db, monkeypatch):
    logger = logging.getLogger("odoo.addons.test_job_worker.models.test_job_target")
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: None)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    with worker_thread(db, concurrency=1) as worker:
        job = db.enqueue_one("job_log", 20, timeout=1, max_retries=1)
        db.wait_for_state(job, "started")
        with handler.lock:
            wait_until(lambda: any(a.interrupted_at for a in worker.pool.running()), 5, "it is interrupted")
        assert "TimeoutJobError" in db.wait_for_state(job, "failed", timeout=15)["exc_info"]
        assert handler.lock.acquire(timeout=1)
        handler.lock.release()
        healthy = db.enqueue_one("job_log", 0.1)
        db.wait_for_state(healthy, "done")
    assert db.job(job)["attempts"] == 2


def test_what_hangs_after_the_commit_of_a_job_does_not_keep_its_slot(db, monkeypatch):
    monkeypatch.setattr(monitor, "ABANDON_AFTER_COMMIT_SECONDS", 1.0)
    with db.env() as env:
        target = env["test.job.target"]
        parent = target.delayable().job_hang_after_commit("parent", 6)
        parent.on_done(target.delayable().job_ledger("child"))
        parent.delay()
    with worker_thread(db, concurrency=1):
        thread = wait_until(lambda: next((t for t in threading.enumerate() if t.name == "job_worker.slot.1"), None))
        db.wait_until_drained(5)
        wait_until(lambda: not thread.is_alive(), 10, "the abandoned thread ends")
    assert db.states() == {"done": 2}
    assert db.ledger() == {"parent": 1, "child": 1}


def test_what_hangs_after_the_commit_of_a_job_does_not_hold_up_a_second_sigterm(db):
    job = db.enqueue_one("job_hang_after_commit", "done", 60)
    with Worker(db) as worker:
        db.wait_for_state(job, "done")
        worker.signal(signal.SIGTERM)
        wait_until(lambda: worker.logged("worker stopping"), what="it drains")
        assert worker.stop(timeout=15) == 0
        assert worker.logged("what follows its commit does not end")
    assert db.states() == {"done": 1}
    assert db.ledger() == {"done": 1}


def test_a_commit_without_answer_does_not_hold_up_a_second_sigterm(db):
    job = db.enqueue_one("job_ledger", "once", 0.5)
    with Worker(db) as worker:
        db.wait_for_state(job, "started")
        with db.env() as env:
            env["queue.job"].browse(job).lock_for_update()
            wait_until(lambda: db.sessions("wait_event_type = 'Lock'"), what="its commit waits")
            worker.signal(signal.SIGTERM)
            wait_until(lambda: worker.logged("worker stopping"), what="it drains")
            assert worker.stop(timeout=20) == 0
    wait_until(lambda: db.ledger() == {"once": 1}, what="the server commits what it was sent")
    assert db.states() == {"done": 1}


def test_a_draining_worker_keeps_no_connection_that_notifications_are_sent_to(db):
    job = db.enqueue_one("job_ledger", "slow", 3)
    with worker_thread(db) as worker:
        db.wait_for_state(job, "started")
        worker.stop()
        wait_until(lambda: not worker.connection.is_open, 2, "it closes the connection")
        assert db.job(job)["state"] == "started"
    assert db.states() == {"done": 1}
    assert not db.workers()
