"""What an idle worker costs, and what wakes it."""

import psutil
import pytest

from tests.harness import Worker, ticks, worker_thread  # first: it puts the addons on the path

from odoo.addons.job_worker.worker.connection import Connection  # isort: skip

WINDOW_SECONDS = 8


def begun_after(db, job_id):
    """Seconds between a job's schedule, or its creation, and its start."""
    return db.value(
        "SELECT extract(epoch FROM started_at - COALESCE(scheduled_at, create_date)) FROM queue_job WHERE id = %s",
        job_id,
    )


def test_an_idle_worker_asks_once_in_a_poll_interval(db, monkeypatch):
    # Counted where the worker begins them: the server's own count has those of autovacuum too.
    begun = []
    transaction = Connection.transaction
    monkeypatch.setattr(
        Connection, "transaction", lambda self, **options: begun.append(self) or transaction(self, **options)
    )
    with worker_thread(db, poll_timeout=0.5, heartbeat_interval_seconds=20, stale_after_seconds=60):
        for _tick in ticks(2, 0.5):
            pass
        begun.clear()
        for _tick in ticks(WINDOW_SECONDS, 0.5):
            pass
        asked = len(begun)
    polls = WINDOW_SECONDS / 0.5
    assert polls / 2 <= asked <= polls + 4, f"{asked} transactions in {polls:.0f} poll intervals"


def test_an_idle_worker_hardly_uses_the_processor(db):
    with Worker(db, times={"stale-after": 60, "heartbeat-interval": 15, "poll-timeout": 5}) as worker:
        worker.wait_until_ready()
        processes = worker.processes()
        before = [sum(process.cpu_times()[:2]) for process in processes]
        for _tick in ticks(WINDOW_SECONDS, 1):
            pass
        used = [sum(process.cpu_times()[:2]) - start for process, start in zip(processes, before, strict=True)]
        assert max(used) < 0.01 * WINDOW_SECONDS, f"{used} s of {WINDOW_SECONDS} s"
        assert all(process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_a_commit_wakes_an_idle_worker_at_once(db):
    with worker_thread(db, poll_timeout=60):
        job = db.enqueue_one("job_ledger", "woken")
        db.wait_for_state(job, "done", timeout=10)
        assert begun_after(db, job) < 5


def test_a_scheduled_job_wakes_an_idle_worker_on_time(db):
    with worker_thread(db, poll_timeout=60):
        job = db.enqueue_one("job_ledger", "scheduled", eta=2)
        db.wait_for_state(job, "done", timeout=15)
        assert 0 <= begun_after(db, job) < 3


@pytest.mark.parametrize("poll_timeout", [0.5])
def test_without_notifications_polling_is_enough(db, poll_timeout):
    with worker_thread(db, poll_timeout=poll_timeout, listen=False):
        job = db.enqueue_one("job_ledger", "polled")
        db.wait_for_state(job, "done", timeout=10)
        assert not db.sessions("query ILIKE 'listen%%'")


def test_the_command_line_can_do_without_notifications_too(db):
    with Worker(db, "--no-listen") as worker:
        worker.wait_until_ready()
        job = db.enqueue_one("job_ledger", "polled")
        db.wait_for_state(job, "done", timeout=10)
        assert worker.stop() == 0


def test_a_scheduled_job_that_somebody_is_changing_is_not_asked_for_over_and_over(db, monkeypatch):
    begun = []
    transaction = Connection.transaction
    monkeypatch.setattr(
        Connection, "transaction", lambda self, **options: begun.append(self) or transaction(self, **options)
    )
    job = db.enqueue_one("job_ledger", "changing", eta=1)
    with worker_thread(db) as worker:
        with db.env() as env:
            env["queue.job"].browse(job).priority = 3
            env.flush_all()
            for _tick in ticks(2, 0.5):  # by now it is due, and its row is locked
                pass
            begun.clear()
            for _tick in ticks(2, 0.5):
                pass
            assert len(begun) < 200, f"{len(begun)} transactions in two seconds"
        db.wait_for_state(job, "done")
        assert worker.name in db.workers()
