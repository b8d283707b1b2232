"""The cursor that jobs run on, and code that does more with it than is good."""

import pytest

from tests.harness import wait_until, worker_thread


@pytest.mark.parametrize(
    "sql", ["COMMIT", " commit;", "END", "ROLLBACK", "/* unseen */ COMMIT", "COMMIT; SELECT 1 / 0"]
)
def test_a_job_that_ends_its_transaction_in_sql_fails(db, sql):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_execute", sql, max_retries=1)
        exc_info = db.wait_for_state(job, "failed")["exc_info"]
    assert "RuntimeError: a job can't" in exc_info
    assert "use env.cr.commit()" in exc_info


@pytest.mark.parametrize("sql", ["COMMIT", "end;", "ROLLBACK"])
def test_what_a_job_writes_around_a_commit_in_sql_is_not_committed(db, sql):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_end_transaction", "job", sql, max_retries=1)
        db.wait_for_state(job, "failed")
    assert not db.ledger()


@pytest.mark.parametrize("sql", ["/* unseen */ COMMIT", "SELECT 1; COMMIT", "COMMIT; SELECT 1 / 0"])
def test_what_a_job_writes_after_it_ended_its_transaction_unseen_is_not_committed(db, sql):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_end_transaction", "job", sql, max_retries=1)
        db.wait_for_state(job, "failed")
    assert "job:second" not in db.ledger()


@pytest.mark.parametrize("end", ["done", "failed"])
def test_what_a_job_left_behind_cannot_write_into_the_transaction_of_the_next(db, end):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_leave_behind", "late", end == "failed", max_retries=1)
        db.wait_for_state(job, end)
        next_one = db.enqueue_one("job_find", "next")
        db.wait_for_state(next_one, "done")
        [[result]] = db.query("SELECT result FROM queue_job WHERE id = %s", next_one)
    assert result
    assert set(result) == {"Cursor already closed"}
    assert db.ledger() == {"next": 1}


@pytest.mark.parametrize("error", [None, "value"])
def test_jobs_that_a_job_enqueues_are_there_as_far_as_it_is_committed(db, error):
    committed, kept = ["a", "b", "c", "d"], ["e", "f", "g", "h"]
    with worker_thread(db, concurrency=2):
        job = db.enqueue_one("job_enqueue_in_a_row", committed, kept, error, max_retries=1)
        db.wait_for_state(job, "failed" if error else "done")
        # it fails twice
        expected = dict.fromkeys(committed, 2) if error else dict.fromkeys(committed + kept, 1)
        wait_until(lambda: db.ledger() == expected, what=f"the ledger holds {expected}")
