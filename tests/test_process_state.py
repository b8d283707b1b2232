"""What jobs share because they run in one process, and what they do not."""

import locale
import os
from pathlib import Path

import pytest

from tests.harness import wait_until, worker_thread


@pytest.mark.parametrize("error", [None, "value"])
def test_no_job_finds_the_context_variables_of_another(db, error):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_change_context", error, max_retries=1)
        db.wait_for_state(job, "failed" if error else "done")
        next_one = db.enqueue_one("job_change_context")
        db.wait_for_state(next_one, "done")
        assert db.value("SELECT result FROM queue_job WHERE id = %s", next_one) == [28, None]


@pytest.mark.usefixtures("process_state")
def test_the_working_directory_and_the_locale_are_what_they_were_once_no_job_runs(db, tmp_path):
    def seen(*change):
        job = db.enqueue_one("job_process_state", *change)
        db.wait_for_state(job, "done")
        return db.value("SELECT result FROM queue_job WHERE id = %s", job)

    with worker_thread(db, concurrency=2):
        before = seen()
        changed = seen(str(tmp_path), "C.UTF-8")
        assert changed[0] != before[0]
        assert changed[1] != before[1]
        wait_until(lambda: seen() == before, what="they are brought back")
        beside = db.enqueue_one("job_wait_for_ledger", "go on")
        wait_until(lambda: db.ledger()["waits for go on"], what="another job runs")
        assert seen(str(tmp_path), "C.UTF-8") == changed
        assert seen() == changed, "another job may rely on it"
        db.enqueue_one("job_ledger", "go on")
        db.wait_for_state(beside, "done")
        wait_until(lambda: seen() == before, what="they are brought back")


@pytest.fixture
def process_state():
    """For the process of the tests: its directory and locale."""
    before = Path.cwd(), locale.setlocale(locale.LC_ALL)
    yield
    os.chdir(before[0])
    locale.setlocale(locale.LC_ALL, before[1])
