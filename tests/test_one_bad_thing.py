"""One bad thing stays one bad thing: what concerns a job costs that job; what concerns the worker is said again and
again, shows on its record, and ends by itself; everything else goes on.
"""

import base64
import os
import signal

import psycopg2
import pytest
from odoo.sql_db import ConnectionPool

from tests.harness import STALE_AFTER, Worker, ticks, wait_until, worker_thread

from odoo.addons.job_worker import queries
from odoo.addons.job_worker.delay import chain
from odoo.addons.job_worker.lifecycle import SETTLE
from odoo.addons.job_worker.worker import obstacles
from odoo.addons.job_worker.worker.connection import Connection
from odoo.addons.job_worker.worker.job_cursor import JobCursor

IDS_USED_UP = (
    "ALTER SEQUENCE queue_job_attempt_id_seq RESTART WITH 2147483647; SELECT nextval('queue_job_attempt_id_seq')"
)
COLUMN_OF_AN_ADDON = "ALTER TABLE queue_job_attempt ADD COLUMN team_id int NOT NULL"
REFUSED = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON queue_job_attempt FOR EACH ROW EXECUTE FUNCTION refuse()"""
NO_HISTORY = pytest.mark.parametrize(
    "sql", [IDS_USED_UP, COLUMN_OF_AN_ADDON, REFUSED], ids=["ids used up", "column of an addon", "trigger"]
)
NOT_KEPT = "can't be kept in the history"
NOT_WRITTEN = "the end of an attempt can't be written"


def refuse_end(db, job_id):
    """Let no state follow ``started`` for one job."""
    db.query(f"""
        CREATE FUNCTION refuse_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
        CREATE TRIGGER refuse_end BEFORE UPDATE ON queue_job FOR EACH ROW
          WHEN (OLD.id = {job_id} AND OLD.state = 'started') EXECUTE FUNCTION refuse_end()""")


def accept_end(db):
    db.query("DROP FUNCTION refuse_end CASCADE")


def run_others(db):
    """Jobs beside the bad one are done soon."""
    for job in db.enqueue("job_ledger", [(f"other {number}",) for number in range(10)]):
        db.wait_for_state(job, "done", timeout=15)


def worker_row(db):
    """State of the worker, and why."""
    return db.query("SELECT state, reason FROM queue_worker WHERE state != 'dead'")[0]


# --- the history of attempts ------------------------------------------------------------------------------------------


@NO_HISTORY
def test_a_failure_that_the_history_cannot_take_is_counted_all_the_same(fresh_db, sql):
    fresh_db.query(sql)
    with Worker(fresh_db, concurrency=1) as worker:
        job = fresh_db.enqueue_one("job_fail", max_retries=1)
        assert fresh_db.wait_for_state(job, "failed")["attempts"] == 2
        run_others(fresh_db)
        assert worker.logged(NOT_KEPT) == 2
        assert not worker.logged("database lost")
        assert worker_row(fresh_db) == ("running", None)


def test_a_timeout_and_a_cancel_need_no_history(fresh_db):
    fresh_db.query(REFUSED)
    with Worker(fresh_db) as worker:
        late = fresh_db.enqueue_one("job_spin", timeout=1, max_retries=1)
        cancelled = fresh_db.enqueue_one("job_spin")
        fresh_db.wait_for_state(cancelled, "started")
        with fresh_db.env() as env:
            env["queue.job"].browse(cancelled).button_cancelled()
        fresh_db.wait_for_state(cancelled, "cancelled")
        assert fresh_db.wait_for_state(late, "failed")["attempts"] == 2
        running = fresh_db.enqueue_one("job_sleep", 60)
        fresh_db.wait_for_state(running, "started")
        worker.signal(signal.SIGTERM)
        wait_until(lambda: worker.logged("worker stopping"), what="it takes note")
        worker.signal(signal.SIGTERM)
        worker.wait()
        assert fresh_db.job(running)["state"] == "pending"


def test_a_job_that_dies_with_its_worker_needs_no_history(fresh_db):
    fresh_db.query(REFUSED)
    job = fresh_db.enqueue_one("job_exit_process", max_retries=1)
    with Worker(fresh_db):
        assert fresh_db.wait_for_state(job, "failed")["attempts"] == 2
        run_others(fresh_db)


# --- a job whose end can't be written ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["job_fail", "job_succeed"])
def test_a_job_whose_end_is_refused_costs_its_own_seat_only(fresh_db, method):
    fresh_db.query("UPDATE queue_limit SET \"limit\" = 2 WHERE name = 'root'")
    job = fresh_db.enqueue_one(method, max_retries=1)
    refuse_end(fresh_db, job)
    with Worker(fresh_db, concurrency=1) as worker:
        wait_until(lambda: worker.logged(NOT_WRITTEN), what="it is told")
        run_others(fresh_db)
        assert fresh_db.job(job)["state"] == "started"
        assert worker.logged(NOT_WRITTEN) == 1, "once a minute"
        assert not worker.logged("database lost")
        assert worker_row(fresh_db) == ("running", None)
        accept_end(fresh_db)
        fresh_db.wait_for_state(job, "failed" if method == "job_fail" else "done", timeout=60)


def test_a_job_that_cannot_be_given_back_holds_up_nobody(fresh_db):
    jobs = fresh_db.enqueue("job_sleep", [(2,)] * 6)
    refuse_end(fresh_db, jobs[3])
    with Worker(fresh_db, concurrency=6) as worker:
        wait_until(lambda: fresh_db.states().get("started") == 6, what="all of them run")
        for job in jobs:
            fresh_db.query("UPDATE queue_job SET cancel_requested = true WHERE id = %s AND id != %s", job, jobs[3])
        wait_until(lambda: fresh_db.states().get("cancelled") == 5, what="the others are cancelled")
        run_others(fresh_db)
        assert worker.stop() == 0


def test_a_job_of_a_dead_worker_that_cannot_be_taken_back_holds_up_no_other(fresh_db):
    jobs = fresh_db.enqueue("job_sleep", [(60,)] * 4, max_retries=1)
    with Worker(fresh_db, concurrency=4) as worker:
        wait_until(lambda: fresh_db.states() == {"started": 4}, what="all of them run")
        worker.signal_all(signal.SIGKILL)
    refuse_end(fresh_db, jobs[0])
    with Worker(fresh_db, concurrency=4) as worker:
        for job in jobs[1:]:
            wait_until(lambda job=job: fresh_db.job(job)["attempts"] == 1, 20, "the others are taken back")
        wait_until(lambda: worker.logged(NOT_WRITTEN), what="it is told")
        run_others(fresh_db)
        assert fresh_db.job(jobs[0])["state"] == "started"
        assert worker.logged(NOT_WRITTEN) == 1, "once a minute"
        accept_end(fresh_db)
        wait_until(lambda: fresh_db.job(jobs[0])["attempts"] == 1, 60, "it is taken back")


def test_a_waiting_job_that_cannot_be_promoted_holds_up_no_other(fresh_db):
    with fresh_db.env() as env:
        target = env["test.job.target"]
        chains = [
            chain(target.delayable(eta=3600).job_nothing(), target.delayable().job_nothing()) for _number in range(4)
        ]
        jobs = [each.delay().ids for each in chains]
    parents, children = zip(*jobs, strict=True)
    fresh_db.query(f"""
        CREATE FUNCTION refuse_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
        CREATE TRIGGER refuse_end BEFORE UPDATE ON queue_job FOR EACH ROW
          WHEN (OLD.id = {children[1]} AND OLD.state = 'waiting') EXECUTE FUNCTION refuse_end()""")
    fresh_db.query("UPDATE queue_job SET state = 'done', completed_at = now() WHERE id = ANY(%s)", list(parents))
    with Worker(fresh_db) as worker:
        for child in (children[0], *children[2:]):
            fresh_db.wait_for_state(child, "done")
        assert fresh_db.job(children[1])["state"] == "waiting"
        wait_until(lambda: worker.logged("worker in trouble"), what="it is told")
        accept_end(fresh_db)
        fresh_db.wait_for_state(children[1], "done")


@pytest.mark.parametrize("column", ["database_failures", "timeout", "attempts", "max_retries"])
def test_a_job_without_one_of_its_numbers_runs_like_any(fresh_db, column):
    fresh_db.query(f"ALTER TABLE queue_job ALTER COLUMN {column} DROP NOT NULL")
    bad = fresh_db.enqueue_one("job_sleep_in_database", 60)
    failing = fresh_db.enqueue_one("job_fail", max_retries=1)
    fresh_db.query(f"UPDATE queue_job SET {column} = NULL")
    late = fresh_db.enqueue_one("job_spin", timeout=1, max_retries=1)
    with Worker(fresh_db, concurrency=3) as worker:
        fresh_db.wait_for_state(late, "failed")
        wait_until(lambda: fresh_db.job(failing)["attempts"], what="its failure is counted")
        fresh_db.wait_for_state(bad, "started")
        for pid in fresh_db.sessions(f"application_name = 'odoo-{worker.children()[0]}'"):
            fresh_db.query("SELECT pg_terminate_backend(%s)", pid)
        wait_until(lambda: fresh_db.job(bad)["database_failures"] == 1, what="it is given back")
        fresh_db.wait_for_state(bad, "started")
        worker.signal_all(signal.SIGKILL)
    with Worker(fresh_db):
        wait_until(lambda: fresh_db.job(bad)["attempts"] == 1, what="it is taken back")


# --- a worker in trouble ----------------------------------------------------------------------------------------------


def test_a_worker_that_cannot_claim_says_so_until_it_can(fresh_db, caplog, monkeypatch):
    monkeypatch.setattr(obstacles, "REPEAT_SECONDS", 2.0)
    with worker_thread(fresh_db):
        job = fresh_db.enqueue_one("job_nothing", eta=1)
        fresh_db.query("ALTER TABLE queue_job RENAME COLUMN database_failures TO elsewhere")

        def told():
            return [record for record in caplog.records if "worker in trouble" in record.message]

        wait_until(lambda: len(told()) >= 3, what="it is said again and again")
        assert all(record.levelname == "ERROR" and record.exc_info for record in told())
        assert not any("database lost" in record.message for record in caplog.records)
        wait_until(lambda: worker_row(fresh_db)[0] == "trouble", what="it shows on its record")
        assert "database_failures" in worker_row(fresh_db)[1]
        fresh_db.query("ALTER TABLE queue_job RENAME COLUMN elsewhere TO database_failures")
        fresh_db.wait_for_state(job, "done")
        wait_until(lambda: worker_row(fresh_db) == ("running", None), what="it is over")


def test_upkeep_that_fails_stops_neither_jobs_nor_signs_of_life(fresh_db):
    with fresh_db.env() as env:
        target = env["test.job.target"]
        chain(target.delayable(eta=3600).job_nothing(), target.delayable().job_nothing()).delay()
    fresh_db.query("ALTER TABLE queue_job RENAME COLUMN ended_by_id TO elsewhere")
    with Worker(fresh_db) as worker:
        wait_until(lambda: worker.logged("worker in trouble"), what="it is told")
        wait_until(lambda: fresh_db.workers() and worker_row(fresh_db)[0] == "trouble", what="it shows on its record")
        run_others(fresh_db)
        for _tick in ticks(2 * STALE_AFTER, 1):
            assert not worker.logged("taken for dead")
        assert worker.logged("worker in trouble") == 1, "once a minute"
        fresh_db.query("ALTER TABLE queue_job RENAME COLUMN elsewhere TO ended_by_id")
        wait_until(lambda: worker_row(fresh_db) == ("running", None), what="it is over")


def test_a_connection_that_could_not_be_prepared_is_not_used(db):
    """Half prepared, the worker's own claimed what it could not run."""
    asked = []

    def prepare(cr):
        asked.append(cr)
        if len(asked) == 1:
            cr.execute("SELECT 1 / 0")

    connection = Connection(db.name, prepare)
    with pytest.raises(psycopg2.errors.DivisionByZero):
        connection.open()
    assert not connection.is_open
    connection.open()
    assert len(asked) == 2
    connection.close()


def test_a_jobs_connection_that_could_not_be_prepared_is_let_go(db, monkeypatch):
    monkeypatch.setattr(queries, "PREPARE_FINISH", "SELECT 1 / 0")
    pool = ConnectionPool(1)
    for _try in range(3):
        with pytest.raises(psycopg2.errors.DivisionByZero):
            JobCursor(pool, db.name)
    assert all(connection.closed for connection in pool._connections)


@pytest.mark.parametrize(
    "payload",
    ["x", "a\tb\tc", "root\t1", "root\t99999999999\t1", "root\t1\t99999999999999999999", "nowhere\t1\t1", "{}\n\n"],
)
def test_a_notification_of_somebody_elses_is_no_trouble(db, payload):
    with Worker(db, times={"poll-timeout": 60}) as worker:
        worker.wait_until_ready()
        for channel in ("queue_job_wake_up", SETTLE):
            db.query("SELECT pg_notify(%s, %s)", channel, payload)
        job = db.enqueue_one("job_nothing")
        db.wait_for_state(job, "done", timeout=10)
        assert not worker.logged("database lost")
        assert not worker.logged("in trouble")
        assert not worker.logged("unexpected error")


def test_big_arguments_do_not_come_with_the_claim_but_to_the_thread(db):
    """A claim may bring dozens of jobs."""
    came = []
    with worker_thread(db) as worker:
        submit = worker.pool.submit
        worker.pool.submit = lambda claims: (came.extend(claim.payload is not None for claim in claims), submit(claims))
        for value in ("small", base64.b64encode(os.urandom(2**20)).decode()):
            job = db.enqueue_one("job_succeed", value)
            db.wait_for_state(job, "done")
    assert came == [True, False]


def test_arguments_there_is_no_memory_for_cost_their_job_only(db):
    huge = db.enqueue_one("job_succeed", base64.b64encode(os.urandom(90 * 2**20)).decode(), max_retries=1)
    with Worker(db, f"--limit-memory-hard={400 * 2**20}", concurrency=1) as worker:
        assert db.wait_for_state(huge, "failed", timeout=60)["attempts"] == 2
        run_others(db)
        assert not worker.logged("database lost")
        assert not worker.logged("in trouble")
