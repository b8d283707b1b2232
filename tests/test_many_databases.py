"""One runner for all databases that have the addon."""

import threading
from contextlib import closing, contextmanager

import psycopg2
import pytest
from odoo import sql_db
from odoo.tools import config

from tests.harness import STALE_AFTER, Database, Worker, ticks, wait_until
from tools import databases

from odoo.addons.job_worker.worker import QueueJobRunner, runner


@pytest.fixture
def make_database():
    """A function that makes one more database, all of them dropped at the end."""
    made = []

    def make():
        made.append(Database(databases.clone()))
        return made[-1]

    yield make
    for database in made:
        database.close()
        databases.drop(database.name)


@contextmanager
def running(monkeypatch, *names):
    """A runner that may serve ``names`` and looks for them often."""
    monkeypatch.setattr(runner, "DISCOVER_SECONDS", 0.5)
    monkeypatch.setitem(config.options, "dbfilter", f"^({'|'.join(names)})$")
    options = runner.Options(poll_timeout=1, stale_after_seconds=STALE_AFTER, heartbeat_interval_seconds=1)
    queue_runner = QueueJobRunner(options)
    thread = threading.Thread(target=queue_runner.run)
    thread.start()
    try:
        yield queue_runner
    finally:
        queue_runner.stop()
        thread.join(30)
    assert not thread.is_alive()


def test_new_databases_are_picked_up_and_dropped_ones_left(make_database, monkeypatch):
    first, second = make_database(), make_database()
    late_name = f"{first.name}_late"
    with running(monkeypatch, first.name, second.name, late_name):
        for database in (first, second):
            job = database.enqueue_one("job_ledger", "found")
            database.wait_for_state(job, "done")
        late = Database(databases.clone(late_name))
        try:
            job = late.enqueue_one("job_ledger", "late")
            late.wait_for_state(job, "done")
        finally:
            late.close()
            databases.drop(late_name)
        wait_until(
            lambda: all(thread.name != f"job_worker.{late_name}" for thread in threading.enumerate()),
            what="it is left",
        )
        job = first.enqueue_one("job_ledger", "again")
        first.wait_for_state(job, "done")


def test_looking_for_databases_does_not_disturb_running_jobs(make_database, monkeypatch):
    database = make_database()
    with running(monkeypatch, database.name):
        job = database.enqueue_one("job_ledger", "undisturbed", 3)
        assert database.wait_for_state(job, "done")["database_failures"] == 0
    assert database.ledger() == {"undisturbed": 1}


def test_a_sick_database_does_not_hurt_the_others(make_database, monkeypatch):
    healthy, sick = make_database(), make_database()
    sick.query("ALTER TABLE queue_job RENAME TO queue_job_gone")
    with running(monkeypatch, healthy.name, sick.name):
        job = healthy.enqueue_one("job_ledger", "healthy")
        healthy.wait_for_state(job, "done")
        sick.query("ALTER TABLE queue_job_gone RENAME TO queue_job")
        job = sick.enqueue_one("job_ledger", "recovered")
        sick.wait_for_state(job, "done", timeout=40)


def test_a_database_without_the_addon_keeps_no_other_from_being_served(make_database):
    database = make_database()
    job = database.enqueue_one("job_ledger", "served")
    with Worker(None, "-d", f"postgres,{database.name}") as worker:
        database.wait_for_state(job, "done")
        assert worker.logged("database left out: the addon job_worker is not installed in postgres") == 1


@pytest.mark.parametrize("pattern", ["^%d$", "^%h$"])
def test_a_filter_by_the_host_of_requests_hides_no_database(make_database, monkeypatch, caplog, pattern):
    database = make_database()
    monkeypatch.setitem(config.options, "dbfilter", pattern)
    assert runner.databases_with_addon()[database.name] is True
    queue_runner = QueueJobRunner(runner.Options())
    queue_runner.stop()
    queue_runner.run()
    assert f"dbfilter={pattern}" in caplog.text


def test_a_server_that_can_not_be_asked_for_its_databases_is_told_of():
    with Worker(None, environment={"PGHOST": "localhost", "PGPORT": "1"}) as worker:
        wait_until(lambda: worker.logged("Connection refused"), what="it says why it serves nothing")
        assert worker.logged(" ERROR ? odoo.addons.job_worker.worker: looking for databases to serve") == 1
        assert worker.stop() == 0


def test_a_server_that_can_not_be_asked_for_its_databases_takes_none_away(make_database, monkeypatch, caplog):
    database = make_database()

    def fail():
        raise psycopg2.OperationalError("the server is away")

    with running(monkeypatch, database.name):
        database.wait_for_state(database.enqueue_one("job_ledger", "before"), "done")
        served_by = database.workers()
        monkeypatch.setattr(runner, "databases_with_addon", fail)
        wait_until(lambda: "the server is away" in caplog.text, what="it has looked around")
        database.wait_for_state(database.enqueue_one("job_ledger", "meanwhile"), "done")
        assert database.workers() == served_by


def test_a_process_with_no_database_to_serve_is_not_replaced_for_its_memory(monkeypatch):
    monkeypatch.setattr(runner, "databases_with_addon", dict)
    monkeypatch.setitem(config.options, "limit_memory_soft", 1)
    monkeypatch.setitem(config.options, "limit_memory_hard", 0)  # which would hold for the tests
    reports = []
    queue_runner = QueueJobRunner(runner.Options(), report=lambda *report: reports.append(report))
    thread = threading.Thread(target=queue_runner.run)
    thread.start()
    for _tick in ticks(1.5, 0.5):
        assert thread.is_alive()
    queue_runner.stop()
    thread.join(10)
    assert not reports


def test_few_connections_for_many_databases_are_used_in_turns(make_database):
    """Eight workers, and fewer connections than they would keep."""
    made = [make_database() for _number in range(4)]
    jobs = {}
    for database in made:
        with database.env():
            jobs[database] = database.enqueue_one("job_ledger", "done in turn")
        sql_db.close_all()
    admin = Database("postgres", {**made[0].server, "PGUSER": "postgres"})
    names = "|".join(database.name for database in made)
    admin.query("ALTER ROLE odoo CONNECTION LIMIT 10")
    try:
        with Worker(None, f"--db-filter=^({names})$", processes=2, concurrency=2):
            for database, job in jobs.items():
                with closing(Database(database.name, {**database.server, "PGUSER": "postgres"})) as looker:
                    looker.wait_for_state(job, "done", timeout=90)
    finally:
        admin.query("ALTER ROLE odoo CONNECTION LIMIT -1")
        admin.close()
