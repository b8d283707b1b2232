"""Errors that look like something else: they are the job's, and are counted."""

from tests.harness import worker_thread


def test_another_database_that_is_away_is_the_jobs_affair(db):
    job = db.enqueue_one("job_connect_elsewhere", max_retries=1)
    with worker_thread(db):
        assert db.wait_for_state(job, "failed")["attempts"] == 2


def test_an_error_whose_message_cannot_be_told_is_counted_like_any(db):
    job = db.enqueue_one("job_fail", "untellable", max_retries=1)
    with worker_thread(db):
        assert db.wait_for_state(job, "failed")["attempts"] == 2
    assert "UntellableError" in db.job(job)["exc_info"]
