"""A job that was cancelled while it ran does not run again, whatever else happens to its attempt."""

from tests.harness import wait_until, worker_thread  # first: it puts the addons on the path

from odoo.addons.job_worker.worker import job_cursor, queue_worker  # isort: skip


def cancel(db, *job_ids):
    with db.env() as env:
        env["queue.job"].browse(job_ids).button_cancelled()


def test_a_job_that_fails_after_it_was_cancelled_is_not_tried_again(db):
    job = db.enqueue_one("job_sleep_then_fail", 0.9)
    with worker_thread(db):
        db.wait_for_state(job, "started")
        cancel(db, job)
        db.wait_for_state(job, "cancelled")
    assert db.value("SELECT attempts FROM queue_job WHERE id = %s", job) == 0


def test_jobs_cancelled_while_they_are_claimed_ahead_are_not_run(db):
    db.enqueue("job_nothing", [()] * 300)
    with worker_thread(db, concurrency=1) as worker:
        db.wait_until_drained()
        db.enqueue_one("job_ledger", "long", 3, priority=1)
        ahead = db.enqueue("job_ledger", [(f"ahead:{number}",) for number in range(5)])
        wait_until(lambda: worker.pool.has_waiting, what="jobs are claimed ahead")
        cancel(db, *ahead)
        db.wait_until_drained()
    assert set(db.ledger()) == {"long"}
    assert db.states() == {"done": 301, "cancelled": 5}


def test_jobs_cancelled_while_they_wait_for_a_thread_do_not_begin(db, monkeypatch):
    monkeypatch.setattr(queue_worker, "GIVE_BACK_AFTER_SECONDS", 60)
    monkeypatch.setattr(job_cursor, "SURE_SECONDS", 0)
    db.enqueue("job_nothing", [()] * 300)
    with worker_thread(db, concurrency=1) as worker:
        db.wait_until_drained()
        db.query("SELECT pg_advisory_lock(4711)")
        with db.env() as env:  # in one transaction, so that they are claimed together
            target = env["test.job.target"]
            target.with_delay(priority=1).job_execute("SELECT pg_advisory_xact_lock(4711)")
            ahead = [target.with_delay().job_witness(f"ahead:{number}").id for number in range(5)]
        wait_until(lambda: len(worker.pool.claims()) == 6, what="jobs are claimed ahead")
        cancel(db, *ahead)
        db.query("SELECT pg_advisory_unlock(4711)")
        db.wait_until_drained()
    assert not db.ledger()
    assert db.states() == {"done": 301, "cancelled": 5}


def test_a_job_that_cancels_itself_is_cancelled_at_its_first_try_and_what_it_did_is_undone(db):
    job = db.enqueue_one("job_cancel_itself", "undone")
    with worker_thread(db):
        db.wait_for_state(job, "cancelled")
    assert not db.ledger()
    assert db.value("SELECT attempts FROM queue_job WHERE id = %s", job) == 0
