"""A copy of a database has the jobs of the original, and runs none of them."""

import os
import re
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg2
import pytest
from odoo.tools import config

from tests import copying
from tests.faults import keys
from tests.harness import STALE_AFTER, Database, Worker, ticks, wait_until, worker_thread
from tools import databases, postgres
from tools.paths import ODOO_BIN

from odoo.addons.job_worker.delay import chain
from odoo.addons.job_worker.worker import QueueJobRunner, home_check, runner

PASSWORD = "master"
SETTLE_SECONDS = 1.0


@pytest.fixture
def copy(fresh_db):
    """A database to be made as a copy, dropped at the end."""
    database = Database(f"{fresh_db.name}_copy")
    yield database
    database.close()
    databases.drop(database.name)


@pytest.fixture
def quick(monkeypatch):
    """Whatever is waited for, it is not for long."""
    monkeypatch.setattr(runner, "DISCOVER_SECONDS", 0.5)
    monkeypatch.setattr(home_check, "SETTLE_SECONDS", SETTLE_SECONDS)


@pytest.fixture
def worker_for_all(fresh_db, quick, monkeypatch):
    """A worker that serves all databases, of which there are the original and its copies."""
    monkeypatch.setitem(config.options, "dbfilter", f"^{fresh_db.name}")
    with serving():
        yield


@contextmanager
def serving(*names):
    """A runner for these databases, or for all."""
    options = runner.Options(names, poll_timeout=1, stale_after_seconds=STALE_AFTER, heartbeat_interval_seconds=1)
    queue_runner = QueueJobRunner(options)
    thread = threading.Thread(target=queue_runner.run)
    thread.start()
    try:
        yield
    finally:
        queue_runner.stop()
        thread.join(30)
    assert not thread.is_alive()


def database_manager(original, name, folder):
    with web_server(folder) as url:
        form = {"master_pwd": PASSWORD, "name": original.name, "new_name": name}
        urllib.request.urlopen(f"{url}/web/database/duplicate", urllib.parse.urlencode(form).encode(), timeout=120)


@contextmanager
def web_server(folder):
    """Odoo with its database manager; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lines = Path(os.environ["ODOO_RC"]).read_text().replace("list_db = False", f"admin_passwd = {PASSWORD}")
    (folder / "odoo.conf").write_text(lines)
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [str(ODOO_BIN), "server", f"--http-port={port}", "--max-cron-threads=0"],
        env={**os.environ, "ODOO_RC": str(folder / "odoo.conf")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: answers(f"{url}/web/health"), 60, "the web server answers")
            yield url
        finally:
            process.send_signal(signal.SIGKILL)


def answers(url):
    with suppress(urllib.error.URLError, ConnectionError):
        return urllib.request.urlopen(url, timeout=10).status == 200
    return False


# --- what runs where --------------------------------------------------------------------------------------------------


def store_work(database):
    """Jobs of every kind that has not ended, some of which a worker has begun; the keys of all."""
    busy = keys(60, "busy")
    database.enqueue("job_ledger_here", [(key, 0.3) for key in busy], max_retries=0)
    database.enqueue("job_ledger_here", [("scheduled",)], eta=8)
    with database.env() as env:
        target = env["test.job.target"]
        chain(target.delayable(eta=8).job_ledger_here("parent"), target.delayable().job_ledger_here("child")).delay()
    return [f"{database.name}:{key}" for key in (*busy, "scheduled", "parent", "child")]


@pytest.mark.parametrize("make_copy", [*copying.WAYS, database_manager], ids=lambda way: way.__name__)
def test_a_copy_runs_nothing_of_the_original_and_the_original_runs_everything_once(
    fresh_db, copy, tmp_path, worker_for_all, make_copy
):
    expected = store_work(fresh_db)
    wait_until(lambda: fresh_db.states().get("done", 0) > 5, what="it works")
    make_copy(fresh_db, copy.name, tmp_path)
    in_copy = copy.ledger()
    assert all(key.startswith(f"{fresh_db.name}:") for key in in_copy), in_copy
    if make_copy is copying.template:
        assert_untouched(copy, copy.states(), copy.workers(), in_copy)
        with copy.env() as env:
            env["queue.dashboard"].settle_copy(is_copy=True)
    new = copy.enqueue_one("job_ledger_here", "new")
    copy.wait_for_state(new, "done")
    fresh_db.wait_until_drained(60)
    fresh_db.count(expected).check()
    assert copy.ledger() - in_copy == {f"{copy.name}:new": 1}
    assert copy.unfinished() == 0
    cancelled = copy.query("SELECT DISTINCT exc_info FROM queue_job WHERE state = 'cancelled'")
    assert [text for (text,) in cancelled] == [
        "Cancelled, not run: this database was neutralized or is a copy, and the job belongs to the original."
    ]
    assert len(copy.workers()) == 1, "the original's worker is not forgotten"


def leave_unfinished(database):
    """Jobs that a worker would run, recover or promote at once; their states."""
    database.enqueue("job_ledger_here", [("due",)])
    running = database.enqueue_one("job_ledger_here", "running")
    database.query(
        "UPDATE queue_job SET state = 'started', worker_id = 'gone', claim_seq = 1, started_at = now() WHERE id = %s",
        running,
    )
    with database.env() as env:
        target = env["test.job.target"]
        chain(target.delayable().job_ledger_here("parent"), target.delayable().job_ledger_here("child")).delay()
    database.query("UPDATE queue_job SET state = 'done', completed_at = now() WHERE id = %s", running + 1)
    return database.states()


def assert_untouched(database, states, workers=(), ledger=()):
    """Nothing happens there for long enough that something would."""
    for _tick in ticks(3 * SETTLE_SECONDS, 0.3):
        assert (database.states(), database.workers()) == (states, list(workers))
    assert database.ledger() == dict(ledger)


def test_a_database_that_was_moved_is_left_alone_until_a_manager_says_so(fresh_db, copy, quick, caplog):
    states = leave_unfinished(fresh_db)
    copying.template(fresh_db, copy.name, None)
    with serving(copy.name):
        wait_until(lambda: "database left alone" in caplog.text, what="it says so")
        assert "copied or moved" in caplog.text
        assert_untouched(copy, states)
        with copy.env() as env:
            env["queue.dashboard"].settle_copy(is_copy=False)
        copy.wait_until_drained()
    assert copy.ledger() == {f"{copy.name}:{key}": 1 for key in ("due", "child", "running")}


def test_a_database_that_was_renamed_goes_on(fresh_db, copy, quick):
    with worker_thread(fresh_db):
        fresh_db.wait_for_state(fresh_db.enqueue_one("job_ledger_here", "before"), "done")
    later = fresh_db.enqueue_one("job_ledger_here", "after")
    fresh_db.close()
    with databases.connect() as cr:
        cr.execute(f'ALTER DATABASE "{fresh_db.name}" RENAME TO "{copy.name}"')
    with worker_thread(copy):
        copy.wait_for_state(later, "done")
    assert copy.ledger() == {f"{fresh_db.name}:before": 1, f"{copy.name}:after": 1}


def test_a_copy_that_takes_the_name_of_a_database_being_served_runs_nothing(fresh_db, copy, quick, caplog):
    states = leave_unfinished(fresh_db)
    databases.clone(copy.name)
    with worker_thread(copy):
        copy.wait_for_state(copy.enqueue_one("job_ledger", "before"), "done")
        databases.drop(copy.name)
        copying.template(fresh_db, copy.name, None)
        assert_untouched(copy, states)
        copy.query("UPDATE ir_config_parameter SET value = 'of its own' WHERE key = 'database.uuid'")
        wait_until(copy.workers, what="it is served")
        assert copy.states() == {"cancelled": 3, "done": 1}
    ours = [record for record in caplog.records if record.name.startswith("odoo.addons.job_worker")]
    assert not [record.getMessage() for record in ours if record.levelname == "ERROR"]


def test_what_was_cached_of_a_database_is_not_used_in_another_that_gets_its_name(fresh_db, copy):
    set_parameter(fresh_db, "of the first")
    copying.template(fresh_db, copy.name, None)
    # by SQL, as neutralising does: nothing tells others to forget what they cached
    copy.query("UPDATE ir_config_parameter SET value = 'of the second' WHERE key = 'test_job_worker.name'")
    with Worker(fresh_db) as worker:
        assert parameter_in_job(fresh_db) == "of the first"
        take_name(copy, fresh_db)
        wait_until(fresh_db.workers, what="the other database is served")
        assert parameter_in_job(fresh_db) == "of the second"
        assert worker.logged("registry changed, reloaded")


def test_an_attempt_does_not_touch_a_job_of_the_same_number_in_a_database_that_gets_the_name(fresh_db, copy):
    databases.clone(copy.name)
    with Worker(fresh_db):
        first = fresh_db.enqueue_one("job_witness", "first", 4)
        wait_until(lambda: fresh_db.ledger()["first"], what="the first one runs")
        take_name(copy, fresh_db)
        second = fresh_db.enqueue_one("job_witness", "second", 8)
        fresh_db.wait_for_state(second, "done")
        assert (second, fresh_db.ledger()) == (first, {"second": 1})


def set_parameter(database, value):
    with database.env() as env:
        env["ir.config_parameter"].set_param("test_job_worker.name", value)


def parameter_in_job(database):
    job = database.enqueue_one("job_parameter", "test_job_worker.name")
    database.wait_for_state(job, "done")
    return database.value("SELECT result FROM queue_job WHERE id = %s", job)


def take_name(database, other):
    """Drop ``other`` and give its name to ``database``."""
    database.close()
    other.close()
    databases.drop(other.name)
    with databases.connect() as cr:
        cr.execute(f'ALTER DATABASE "{database.name}" RENAME TO "{other.name}"')


@pytest.mark.parametrize("unfinished", [True, False])
def test_a_copy_that_somebody_is_neutralising_is_left_alone(fresh_db, copy, quick, unfinished):
    """Odoo neutralises at REPEATABLE READ: a row that changes meanwhile would make it fail."""
    if unfinished:
        leave_unfinished(fresh_db)
    copying.template(fresh_db, copy.name, None)
    if unfinished:
        copy.query("UPDATE ir_config_parameter SET value = 'of its own' WHERE key = 'database.uuid'")
    states = copy.states()
    check = home_check.HomeCheck(copy.name)
    with psycopg2.connect(dbname=copy.name) as connection, connection.cursor() as cr:
        connection.set_session(isolation_level="REPEATABLE READ")
        cr.execute("UPDATE ir_config_parameter SET value = 'x' WHERE key = 'web.base.url'")
        assert all(check.obstacle() for _tick in ticks(2 * SETTLE_SECONDS, 0.3))
        assert copy.states() == states
        cr.execute(databases.NEUTRALIZE.read_text())
    connection.close()
    assert check.obstacle() is None


def test_signs_of_life_of_a_worker_do_not_make_neutralising_fail(fresh_db):
    fresh_db.query("INSERT INTO queue_worker (name, state) VALUES ('alive', 'running')")
    job = fresh_db.enqueue_one("job_nothing")
    with psycopg2.connect(dbname=fresh_db.name) as connection, connection.cursor() as cr:
        connection.set_session(isolation_level="REPEATABLE READ")
        cr.execute("SELECT FROM queue_worker")
        fresh_db.query("UPDATE queue_worker SET last_heartbeat = now()")
        cr.execute(databases.NEUTRALIZE.read_text())
    connection.close()
    assert fresh_db.job(job)["state"] == "cancelled"
    assert fresh_db.workers() == ["alive"]


@pytest.mark.parametrize("own_uuid", [True, False])
def test_a_copy_without_jobs_is_served_within_seconds(fresh_db, copy, quick, own_uuid):
    fresh_db.query("INSERT INTO queue_worker (name, state) VALUES ('of the original', 'running')")
    copying.template(fresh_db, copy.name, None)
    if own_uuid:
        copy.query("UPDATE ir_config_parameter SET value = 'of its own' WHERE key = 'database.uuid'")
    with worker_thread(copy) as worker:
        assert copy.workers() == [worker.name]
        copy.wait_for_state(copy.enqueue_one("job_ledger", "new"), "done")


def test_a_database_that_is_being_restored_is_left_alone(fresh_db, copy, tmp_path, worker_for_all, caplog):
    with fresh_db.env() as env:
        env["queue.limit"].create({"name": "held", "limit": 0})
    fresh_db.enqueue("job_ledger_here", [("of the original",)], channel="held")
    programs, dump = postgres.Server.own().programs, tmp_path / "dump"
    subprocess.run([programs / "pg_dump", "--no-owner", "-Fc", "-f", dump, fresh_db.name], check=True)
    with databases.connect() as cr:
        cr.execute(f'CREATE DATABASE "{copy.name}" TEMPLATE template0')
    listed = subprocess.run([programs / "pg_restore", "-l", dump], check=True, stdout=subprocess.PIPE, text=True)
    contents = listed.stdout.splitlines()
    # several at once, as with --jobs, may fill tables in any order
    early = [line for line in contents if re.search("TABLE DATA public (ir_module_module|queue_limit) ", line)]
    late = [line for line in contents if re.search("TABLE DATA public queue_job ", line)]
    others = [line for line in contents if line not in (*early, *late)]
    for section, lines in (
        ("pre-data", others),
        ("data", early),
        ("data", others),
        ("data", late),
        ("post-data", others),
    ):
        (tmp_path / "list").write_text("\n".join(lines) + "\n")
        restore = [programs / "pg_restore", "--exit-on-error", f"--section={section}", "-L", tmp_path / "list"]
        subprocess.run([*restore, "-d", copy.name, dump], check=True)
        assert not any(copy.workers() for _tick in ticks(2 * SETTLE_SECONDS, 0.3))
    copy.query('UPDATE queue_limit SET "limit" = 1')
    assert_untouched(copy, {"pending": 1})
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_a_worker_for_a_database_that_is_being_created_waits_for_it(fresh_db, copy):
    """One that was given its name, and so does not have to find it."""
    with databases.connect() as cr:
        cr.execute(f'CREATE DATABASE "{copy.name}" TEMPLATE template0')
    copy.query(
        "CREATE TABLE ir_module_module (name text, state text); CREATE TABLE queue_worker (name text, state text)"
    )
    copy.query("INSERT INTO ir_module_module VALUES ('job_worker', 'installed')")
    with Worker(copy) as worker:
        wait_until(lambda: worker.logged("database left alone"), 60, "it says so")
        assert "Traceback" not in worker.log()
        copy.close()
        databases.drop(copy.name)
        databases.clone(copy.name)
        copy.wait_for_state(copy.enqueue_one("job_ledger", "made"), "done", timeout=60)
