"""Jobs that run in the transaction of their caller, and commit there by themselves."""

import pytest

from tests.harness import STALE_AFTER, worker_thread


def run_now(db, job):
    with db.env() as env:
        env["queue.job"].browse(job).run_now()


def test_a_job_that_commits_in_its_callers_transaction_ends_done_once(db):
    job = db.enqueue_one("job_commit_halfway", "key", 0)
    child = db.enqueue_one("job_ledger", "child")
    run_now(db, job)
    assert db.job(job)["state"] == "done"
    with worker_thread(db):
        db.wait_for_state(child, "done")
    assert db.ledger() == {"key:first": 1, "key:second": 1, "child": 1}


def test_a_job_that_commits_in_the_transaction_of_another_one_ends_done_once(db):
    job = db.enqueue_one("job_commit_halfway", "key", 0, eta=3600)
    outer = db.enqueue_one("job_run_now", job)
    with worker_thread(db):
        db.wait_for_state(outer, "done")
    assert db.job(job)["state"] == "done"
    assert db.ledger() == {"key:first": 1, "key:second": 1}


def test_no_worker_takes_back_a_job_whose_caller_is_still_at_it_after_a_commit(db):
    job = db.enqueue_one("job_commit_then", "key", "job_sleep", STALE_AFTER + 2, eta=3600)
    with db.env() as env, worker_thread(db):
        env["queue.job"].browse(job).run_now()
    assert db.job(job)["state"] == "done"
    assert db.ledger() == {"key": 1}
    assert not db.query("SELECT FROM queue_job_attempt")


def test_a_job_that_fails_after_a_commit_does_not_stay_started(db):
    job = db.enqueue_one("job_commit_then", "key", "job_ledger_then_fail", "undone")
    with pytest.raises(ValueError, match="a value error"):
        run_now(db, job)
    assert db.ledger() == {"key": 1}
    assert (db.job(job)["state"], db.job(job)["attempts"]) == ("pending", 1)
