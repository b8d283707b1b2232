"""A database that is away, full or read-only for a while: one word about it, then on with the work."""

from contextlib import contextmanager

import pytest

from tests.faults import keys
from tests.harness import STALE_AFTER, Database, Worker, ticks, wait_until
from tools import databases, postgres

LOST = "database lost, trying"
BACK = "database back"


@pytest.fixture
def own_server():
    """A database on a server of its own, with the server."""
    with postgres.throwaway() as server:
        name = databases.clone_to(server)
        database = Database(name, server.environment())
        yield database, server
        database.close()
        databases.drop(name)


@contextmanager
def admin(server):
    """Statements as the server's superuser."""
    postgres_db = Database("postgres", {**server.environment(), "PGUSER": "postgres"})
    yield postgres_db.query
    postgres_db.close()


def assert_all_done_uncounted(db, count):
    db.wait_until_drained()
    assert db.states() == {"done": count}
    assert db.value("SELECT max(attempts) FROM queue_job") == 0


def test_any_session_may_be_ended(db):
    with Worker(db) as worker:
        worker.wait_until_ready()
        db.enqueue("job_ledger", [("warm-up",)])
        db.wait_until_drained()
        count, sessions = 1, f"application_name = 'odoo-{worker.children()[0]}'"
        wait_until(lambda: len(db.sessions(sessions)) > 2, what="sessions for claims, for signs of life and for jobs")
        for pid in db.sessions(sessions):
            db.query("SELECT pg_terminate_backend(%s)", pid)
            db.enqueue("job_ledger", [(f"after {pid}",)])
            count += 1
            db.wait_until_drained()
        wait_until(lambda: worker.logged(LOST) == worker.logged(BACK), what="it is back")
        assert worker.logged(LOST) <= count
        assert not worker.logged("unexpected error")
        assert worker.stop() == 0
    assert_all_done_uncounted(db, count)


def test_notifications_come_again_after_the_connection_broke(db):
    with Worker(db, times={"poll-timeout": 60}) as worker:
        worker.wait_until_ready()
        for pid in db.sessions(f"application_name = 'odoo-{worker.children()[0]}'"):
            db.query("SELECT pg_terminate_backend(%s)", pid)
        wait_until(lambda: worker.logged(BACK), what="it is back")
        db.enqueue("job_ledger", [("woken",)])
        db.wait_until_drained(10)
        assert worker.logged(LOST) == worker.logged(BACK) == 1


def test_a_database_read_only_for_a_while(own_server):
    database, server = own_server
    with admin(server) as query, Worker(database, processes=2) as worker:
        worker.wait_until_ready()
        database.enqueue("job_ledger", [(key, 0.02) for key in keys(200)], max_retries=1)
        query(f'ALTER DATABASE "{database.name}" SET default_transaction_read_only = on')
        for pid in database.sessions("application_name LIKE 'odoo-%%'"):
            query("SELECT pg_terminate_backend(%s)", pid)
        wait_until(lambda: worker.logged(LOST) == 2, what="both processes notice")
        for _tick in ticks(2 * STALE_AFTER, 1):
            pass
        assert worker.logged(LOST) == 2, "one line for a change of state"
        query(f'ALTER DATABASE "{database.name}" RESET default_transaction_read_only')
        assert_all_done_uncounted(database, 200)
        wait_until(lambda: worker.logged(BACK) == 2, what="both processes say that it is back")
        assert not worker.logged("recovered"), "who could not report was taken for dead"
        assert worker.stop() == 0
    database.count(keys(200)).check()


def test_a_server_that_has_no_connection_left(own_server):
    database, server = own_server
    with admin(server) as query, Worker(database) as worker:
        worker.wait_until_ready()
        wait_until(lambda: len(database.sessions()) >= 2, what="its own connections")
        with database.env():
            query(f'ALTER DATABASE "{database.name}" CONNECTION LIMIT 1')
        database.enqueue("job_ledger", [(key,) for key in keys(50)], max_retries=1)
        wait_until(lambda: worker.logged(LOST), what="it notices")
        for _tick in ticks(5, 1):
            pass
        assert worker.logged(LOST) == 1, "one line for a change of state"
        assert worker.logged("job given back") < 50, "it goes on claiming what it cannot run"
        query(f'ALTER DATABASE "{database.name}" CONNECTION LIMIT -1')
        assert_all_done_uncounted(database, 50)
        assert worker.logged(BACK) == 1
        assert worker.stop() == 0
    database.count(keys(50)).check()


def test_a_database_that_is_not_there_yet(own_server):
    database, server = own_server
    server.stop("fast")
    with Worker(database) as worker:
        wait_until(lambda: worker.logged(LOST), 60, "it starts without the server")
        server.start()
        wait_until(lambda: worker.logged("worker started"), what="it serves once the server is there")
        database.enqueue("job_ledger", [("at last",)])
        assert_all_done_uncounted(database, 1)
        assert worker.logged(LOST) == worker.logged(BACK) == 1
        assert worker.stop() == 0
