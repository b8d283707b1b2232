"""Connections that go dead without a word, and poolers that give every transaction another session."""

from tests.faults import keys
from tests.harness import Worker
from tests.middlemen import Network, pgbouncer


def test_connections_that_are_half_open_are_noticed_and_replaced(db):
    with Network(db.server) as network, Worker(db, environment=network.environment) as worker:
        worker.wait_until_ready()
        # one that is in the middle of its work and will wait for an answer that never comes
        running = db.enqueue_one("job_ledger", "running", 3)
        db.wait_for_state(running, "started")
        assert network.go_dead() >= 3, "for claims, for signs of life, for the job"
        names = keys(50)
        db.enqueue("job_ledger", [(key,) for key in names])
        db.wait_until_drained(60)
        assert worker.logged("database lost, trying") == worker.logged("database back") == 1
        assert worker.stop() == 0
    db.count(["running", *names]).check()
    assert db.value("SELECT max(attempts) FROM queue_job") == 0


def test_a_worker_behind_a_pooler_polls_and_keeps_its_promises(db, tmp_path):
    # fewer sessions than the worker has connections, so that they have to be shared
    with pgbouncer(db.server, tmp_path, pool_size=4) as environment:
        names = keys(200)
        db.enqueue("job_ledger", [(key, 0.01) for key in names])
        stuck = db.enqueue_one("job_sleep", 60, timeout=2, max_retries=1)
        failing = db.enqueue_one("job_fail", max_retries=1)
        with Worker(db, "--no-listen", processes=2, concurrency=3, environment=environment) as worker:
            db.wait_until_drained(60)
            later = db.enqueue_one("job_ledger", "later")
            db.wait_for_state(later, "done")
            assert not worker.logged("database lost"), worker.log()[-3000:]
            assert not worker.logged("unexpected error"), worker.log()[-3000:]
            assert worker.stop() == 0
    assert "TimeoutJobError" in db.job(stuck)["exc_info"]
    assert (db.job(failing)["state"], db.job(failing)["attempts"]) == ("failed", 2)
    count = db.count([*names, "later"])
    assert (count["lost"], count["repeated"], count["started"]) == (0, 0, 0)


def test_a_worker_works_in_the_schema_that_odoo_works_in(fresh_db, monkeypatch):
    """Told to libpq by the environment, as to the web server."""
    fresh_db.query("ALTER SCHEMA public RENAME TO tenant")
    fresh_db.query("CREATE SCHEMA public")
    fresh_db.close()
    monkeypatch.setenv("PGOPTIONS", "-c search_path=tenant")
    jobs = fresh_db.enqueue("job_ledger", [("one",), ("two",)])
    jobs.append(fresh_db.enqueue_one("job_fail_times", "three", 0, timeout=60))
    with Worker(fresh_db) as worker:
        for job in jobs:
            fresh_db.wait_for_state(job, "done")
        assert not worker.logged("ERROR")
