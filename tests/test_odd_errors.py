"""Errors that look like something else: they are the job's, and are counted."""

import pytest

from tests.harness import Worker, wait_until, worker_thread


def test_another_database_that_is_away_is_the_jobs_affair(db):
    job = db.enqueue_one("job_connect_elsewhere", max_retries=1)
    with worker_thread(db):
        assert db.wait_for_state(job, "failed")["attempts"] == 2


@pytest.mark.parametrize("kind", ["untellable", "unexplained", "exiting", "undecided"])
def test_an_error_that_cannot_be_told_without_another_is_counted_like_any(db, kind):
    job = db.enqueue_one("job_fail", kind, max_retries=1)
    with worker_thread(db):
        ended = db.wait_for_state(job, "failed")
    assert (ended["attempts"], ended["database_failures"]) == (2, 0)
    assert "in job_fail" in ended["exc_info"]
    assert "Error" in ended["exc_info"].splitlines()[-1]


def test_jobs_of_a_model_that_is_not_there_fill_neither_the_history_nor_the_log(db):
    jobs = db.enqueue("job_nothing", [()] * 50)
    db.query(
        """UPDATE queue_job SET model_name = 'gone.model', payload = jsonb_set(payload, '{model}', '"gone.model"')"""
    )
    with Worker(db) as worker:
        tries = "SELECT count(*), min(times), min(number) FROM queue_job_attempt"
        wait_until(lambda: db.query(tries) == [(len(jobs), 3, 3)], 40, "every job is tried three times")
        assert worker.logged("gone.model") == 1, worker.log()[-3000:]
    assert db.states() == {"pending": len(jobs)}
    assert db.value("SELECT max(attempts) FROM queue_job") == 0
    assert db.value("SELECT min(scheduled_at) > now() AT TIME ZONE 'UTC' + interval '10 seconds' FROM queue_job")


def test_what_odoo_tries_again_is_no_failure_of_the_job(db):
    job = db.enqueue_one("job_fail_times", "x", 3, "concurrency", max_retries=1)
    with worker_thread(db):
        assert db.wait_for_state(job, "done", "failed")["state"] == "done"
    assert db.job(job)["attempts"] == 0


def test_the_log_of_a_final_failure_has_the_traceback(db, caplog):
    job = db.enqueue_one("job_fail", max_retries=1)
    with worker_thread(db):
        db.wait_for_state(job, "failed")
        wait_until(lambda: len(logged(caplog, f"job={job}")) == 2, what="both tries are logged")
    to_be_retried, failed = logged(caplog, f"job={job}")
    assert (to_be_retried.levelname, to_be_retried.exc_info) == ("WARNING", None)
    assert failed.levelname == "ERROR"
    assert failed.exc_info[0] is ValueError


def logged(caplog, words):
    return [record for record in caplog.records if words in record.getMessage()]


@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "transaction_timeout"])
@pytest.mark.parametrize("seconds", [1.5, 4], ids=["noticed by the job", "noticed by the monitor"])
def test_a_session_that_the_server_ended_for_idling_is_the_jobs_failure(fresh_db, setting, seconds):
    if not fresh_db.value("SELECT count(*) FROM pg_settings WHERE name = %s", setting):
        pytest.skip("this server has no such setting")
    fresh_db.query(f"ALTER DATABASE \"{fresh_db.name}\" SET {setting} = '1s'")
    job = fresh_db.enqueue_one("job_ledger_then", "payment", "job_sleep", seconds, max_retries=1)
    with Worker(fresh_db) as worker:
        row = fresh_db.wait_for_state(job, "failed", timeout=60)
        assert (row["attempts"], row["database_failures"]) == (2, 0)
        assert setting in row["exc_info"]
        assert not worker.logged("database lost")
