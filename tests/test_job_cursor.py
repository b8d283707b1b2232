"""The cursor that jobs run on, and code that does more with it than is good."""

from contextlib import contextmanager

import pytest

from tests.harness import Database, wait_until, worker_thread


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


LEFT_IN_THE_SESSION = {
    "CREATE TEMP TABLE mine AS SELECT 1": "SELECT count(*) FROM pg_class WHERE relname = 'mine'",
    "SELECT 1; CREATE TEMP TABLE mine (id int)": "SELECT count(*) FROM pg_class WHERE relname = 'mine'",
    "DO $$ BEGIN CREATE TEMP TABLE mine (id int); END $$": "SELECT count(*) FROM pg_class WHERE relname = 'mine'",
    "PREPARE mine AS SELECT 1": "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'",
    "DECLARE mine CURSOR WITH HOLD FOR SELECT 1": "SELECT count(*) FROM pg_cursors WHERE name = 'mine'",
    "LISTEN mine": "SELECT count(*) FROM pg_listening_channels() AS mine WHERE mine = 'mine'",
    "SELECT pg_advisory_lock(4711)": "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711",
    "SELECT PG_ADVISORY_LOCK(4712)": "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4712",
    "SELECT 1 AS id INTO TEMP mine": "SELECT count(*) FROM pg_class WHERE relname = 'mine'",
    "SET ROLE odoo": "SELECT count(*) WHERE current_setting('role') != 'none'",
    "SET search_path = pg_catalog, public": "SELECT count(*) WHERE current_setting('search_path') ~ 'pg_catalog'",
}


@pytest.mark.parametrize("error", [None, "value"])
def test_nothing_that_a_job_leaves_in_its_session_is_there_for_the_next(db, error):
    with worker_thread(db, concurrency=1):
        for sql, count in LEFT_IN_THE_SESSION.items():
            job = db.enqueue_one("job_execute", sql, error, max_retries=1)
            db.wait_for_state(job, "failed" if error else "done")
            next_one = db.enqueue_one("job_execute", count)
            db.wait_for_state(next_one, "done")
            assert db.value("SELECT result FROM queue_job WHERE id = %s", next_one) == [[0]], sql


def test_a_job_that_closes_its_cursor_fails_like_any_other(db):
    job = db.enqueue_one("job_close_cursor", "undone", max_retries=1)
    with worker_thread(db):
        db.wait_for_state(job, "failed")
    assert "a job can't close its cursor" in db.job(job)["exc_info"]
    assert (db.job(job)["attempts"], db.job(job)["database_failures"]) == (2, 0)
    assert not db.ledger()


THE_JOBS_AFFAIR = [
    "SET LOCAL search_path = pg_catalog",
    "SET search_path = pg_catalog",
    "CREATE TEMP TABLE queue_job (id int)",
    "DEALLOCATE ALL",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "SET LOCAL ROLE job_stranger",
    "SET ROLE job_stranger",
    "SET LOCAL standard_conforming_strings = off",
]


@pytest.fixture
def stranger(db):
    """A role that Odoo's may take on, and that has no right to the tables of the queue."""
    with as_superuser(db) as superuser:
        superuser.query("CREATE ROLE job_stranger")
        superuser.query(f"GRANT job_stranger TO {db.value('SELECT current_user')}")
        yield
        superuser.query("DROP ROLE job_stranger")


@contextmanager
def as_superuser(db):
    superuser = Database(db.name, {**db.server, "PGUSER": "postgres"})
    yield superuser
    superuser._disconnect()


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("commit", [False, True])
def test_what_a_job_does_to_its_session_hinders_neither_its_end_nor_its_commits(db, commit):
    jobs = {sql: db.enqueue_one("job_ledger_around", sql, sql, commit, max_retries=1) for sql in THE_JOBS_AFFAIR}
    with worker_thread(db, concurrency=1):
        for job in jobs.values():
            db.wait_for_state(job, "done", "failed")
            assert (db.job(job)["state"], db.job(job)["attempts"]) == ("done", 0), db.job(job)["exc_info"]
    writes = ("first", "second") if commit else ("first",)
    assert db.ledger() == {f"{sql}:{write}": 1 for sql in THE_JOBS_AFFAIR for write in writes}


@pytest.mark.parametrize(
    "sql",
    ["SET TRANSACTION READ ONLY", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; SET TRANSACTION READ ONLY"],
)
def test_a_job_that_only_reads_may_say_so(db, sql):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_execute", f"{sql}; SELECT 42", max_retries=1)
        assert db.wait_for_state(job, "done", "failed")["state"] == "done", db.job(job)["exc_info"]
        assert db.value("SELECT result FROM queue_job WHERE id = %s", job) == [[42]]
        next_one = db.enqueue_one("job_ledger", "next")
        db.wait_for_state(next_one, "done")
    assert (db.job(job)["attempts"], db.job(job)["database_failures"]) == (0, 0)


def test_a_job_that_only_reads_may_commit_too(db):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_read_only_then_write", "job")
        assert db.wait_for_state(job, "done", "failed")["state"] == "done", db.job(job)["exc_info"]
    assert db.ledger() == {"job": 1}


def test_a_job_that_only_reads_ends_under_the_fence(db, caplog):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_execute", "SET TRANSACTION READ ONLY; SELECT pg_sleep(0.5)")
        db.wait_for_state(job, "started")
        db.query("UPDATE queue_job SET claim_seq = nextval('queue_job_claim_seq') WHERE id = %s", job)
        wait_until(lambda: "does not own its job" in caplog.text, what="the attempt finds out")
        assert db.job(job)["state"] == "started"
        db.query("UPDATE queue_job SET state = 'failed', completed_at = now() WHERE id = %s", job)


@pytest.mark.parametrize("commit", [False, True])
def test_a_job_that_has_written_fails_if_it_only_reads_from_then_on(db, commit):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_ledger_around", "job", "SET TRANSACTION READ ONLY", commit, max_retries=1)
        ended = db.wait_for_state(job, "failed")
    assert (ended["attempts"], ended["database_failures"], db.ledger()) == (2, 0, {})
    assert "READ ONLY" in ended["exc_info"].splitlines()[-1]


def test_a_write_of_a_job_that_said_it_only_reads_is_its_own_failure(db):
    with worker_thread(db, concurrency=1):
        job = db.enqueue_one("job_execute", "SET TRANSACTION READ ONLY; DELETE FROM test_job_ledger", max_retries=1)
        ended = db.wait_for_state(job, "failed")
    assert (ended["attempts"], ended["database_failures"]) == (2, 0)


def test_jobs_that_say_no_more_than_the_orm_does_share_a_session(db):
    with worker_thread(db, concurrency=1):

        def session():
            job = db.enqueue_one("job_execute", "SELECT pg_backend_pid()")
            db.wait_for_state(job, "done")
            return db.value("SELECT result FROM queue_job WHERE id = %s", job)

        before = session()
        with db.env() as env:
            partners = env["res.partner"].create([{"name": f"partner {number}"} for number in range(3)])
            jobs = [
                partners.with_delay().write({"comment": "a; b"}),
                partners.with_delay().copy(),
                partners.with_delay().search([("name", "=ilike", "partner%"), ("category_id.name", "!=", ";")]),
                partners.with_delay().unlink(),
                env["test.job.target"].with_delay().job_enqueue_in_a_row(["a", "b", "c"], ["d", "e", "f"]),
                env["test.job.target"].with_delay().job_track(2, 0.1),
                env["test.job.target"].with_delay(max_retries=1).job_ledger_then_fail("x"),
            ]
            ids = [job.id for job in jobs]
        for job in ids:
            db.wait_for_state(job, "done", "failed")
        assert session() == before


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
