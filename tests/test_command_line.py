"""What ``odoo-bin job_worker`` says to whoever types it."""

import configparser
import subprocess
import sys
import textwrap

import pytest

from tests.harness import Worker, run_odoo, wait_until  # first: it puts the addons on the path
from tools.paths import ROOT

from odoo.addons.job_worker.worker.queue_worker import GIVE_UP_AFTER_SECONDS  # isort: skip
from odoo.addons.job_worker.worker.supervisor import LAST_WAIT_SECONDS  # isort: skip


def test_help_names_every_option_and_the_signals():
    status, output = run_odoo(None, "job_worker", "--help")
    assert status == 0
    for word in ("--processes", "--concurrency", "--shutdown-timeout", "--no-listen", "--check", "SIGTERM", "SIGUSR1"):
        assert word in output
    assert max(map(len, output.splitlines())) <= 120


def test_check_says_that_all_is_well(db):
    status, output = run_odoo(db, "job_worker", "--check")
    assert (status, output.strip().splitlines()[-1]) == (0, f"job_worker: ready to serve {db.name}")


def test_check_tells_why_no_worker_would_claim(fresh_db):
    fresh_db.query("UPDATE ir_module_module SET state = 'to upgrade' WHERE name = 'web_tour'")
    status, output = run_odoo(fresh_db, "job_worker", "--check")
    assert (status, "web_tour (to upgrade)" in output, "ready to serve" in output) == (1, True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=0"], "argument --processes: '0' is not a whole number from 1"),
        (["--concurrency=two"], "argument --concurrency: 'two' is not a whole number from 1"),
        (["--poll-timeout=-1"], "argument --poll-timeout: '-1' is not a number of seconds"),
        (["--stale-after=5", "--heartbeat-interval=5"], "--heartbeat-interval must be above 0 and below --stale-after"),
        (["--concurrency=500"], "--concurrency 500 needs as many connections: raise db_maxconn"),
        (["-d", "job_worker_no_such_database"], "can't open job_worker_no_such_database"),
        (["-d", "postgres"], "the addon job_worker is not installed in postgres"),
    ],
)
def test_a_mistake_gets_a_clear_answer(arguments, message):
    status, output = run_odoo(None, "job_worker", "--check", *arguments)
    assert status in (1, 2)
    assert message in output
    assert "Traceback" not in output


def test_a_worker_that_looks_for_attachments_elsewhere_says_so(db, tmp_path):
    with db.env() as env:
        env["ir.attachment"].create({"name": "a file", "raw": b"its content"})
    elsewhere = f"--data-dir={tmp_path}"
    status, output = run_odoo(db, "job_worker", "--check", elsewhere)
    assert status == 1
    assert f"none of the latest attachments can be read in {tmp_path}/filestore/{db.name}" in output
    with Worker(db, elsewhere) as worker:
        wait_until(lambda: worker.logged(f"folder={tmp_path}/filestore/{db.name}"), what="it says so")
    with Worker(db) as worker:
        db.wait_for_state(db.enqueue_one("job_ledger", "done"), "done")
        assert not worker.logged("attachments are not where")


def test_a_database_that_was_copied_or_moved_is_no_database_to_serve(db):
    db.enqueue_one("job_nothing")
    home = db.value("SELECT value FROM ir_config_parameter WHERE key = 'job_worker.home'")
    db.query("UPDATE ir_config_parameter SET value = '1 1 ' || %s WHERE key = 'job_worker.home'", home.split()[-1])
    try:
        status, output = run_odoo(db, "job_worker", "--check")
        assert status == 1
        assert f"{db.name}: it was copied or moved" in output
        assert db.value("SELECT value FROM ir_config_parameter WHERE key = 'job_worker.home'").startswith("1 1 ")
    finally:
        db.query("UPDATE ir_config_parameter SET value = %s WHERE key = 'job_worker.home'", home)


def test_a_bad_value_in_the_environment_gets_a_clear_answer():
    status, output = run_odoo(None, "job_worker", "--check", environment={"QUEUE_JOB_CONCURRENCY": "many"})
    assert status == 1
    assert "QUEUE_JOB_CONCURRENCY must be a number from 1: 'many'" in output


def test_a_worker_alone_in_a_plain_python_process(db):
    job = db.enqueue_one("job_ledger", "plain")
    program = textwrap.dedent(
        f"""
        import threading, time
        from odoo.modules.module import initialize_sys_path
        from odoo.tools import config

        config.parse_config([])
        initialize_sys_path()
        from odoo.addons.job_worker.worker import QueueWorker

        stop = threading.Event()
        worker = QueueWorker({db.name!r}, poll_timeout=0.5, stop_event=stop)
        thread = threading.Thread(target=worker.run)
        thread.start()
        input()
        stop.set()
        thread.join(20)
        print("stopped" if not thread.is_alive() else "hangs")
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            db.wait_for_state(job, "done")
            output, _errors = process.communicate("\n", timeout=30)
        finally:
            process.kill()
    assert output.strip() == "stopped"
    assert not db.workers()


def test_databases_that_can_not_be_served_are_left_out_with_a_warning(db):
    names = [f"{db.name},postgres", "-d", "job_worker_no_such_database"]
    status, output = run_odoo(None, "job_worker", "--check", "-d", *names)
    assert status == 0, output
    assert "WARNING" in output
    assert "left out: the addon job_worker is not installed in postgres" in output
    assert "left out: can't open job_worker_no_such_database" in output
    assert output.strip().splitlines()[-1] == f"job_worker: ready to serve {db.name}"


@pytest.mark.parametrize("database", ["some_database", None])
def test_check_does_not_call_ready_what_it_can_not_reach(database):
    """A worker that is started waits for its server, a check tells what the server said."""
    arguments = ["-d", database] if database else []
    away = {"PGHOST": "localhost", "PGPORT": "1"}
    status, output = run_odoo(None, "job_worker", "--check", *arguments, environment=away)
    assert status == 1
    assert "Connection refused" in output
    assert "ready" not in output
    assert "Traceback" not in output


def test_the_unit_for_systemd_starts_a_worker_that_is_given_the_time_to_stop(db):
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(ROOT / "deploy" / "odoo-jobs.service")
    _program, *arguments = unit["Service"]["ExecStart"].split()
    status, output = run_odoo(db, *arguments, "--check")
    assert (status, output.strip().splitlines()[-1]) == (0, f"job_worker: ready to serve {db.name}")
    (timeout,) = (float(argument.partition("=")[2]) for argument in arguments if "--shutdown-timeout" in argument)
    assert float(unit["Service"]["TimeoutStopSec"]) > timeout + GIVE_UP_AFTER_SECONDS + LAST_WAIT_SECONDS


def test_a_worker_does_not_start_with_fewer_connections_than_it_takes(fresh_db):
    fresh_db.query(f'ALTER DATABASE "{fresh_db.name}" CONNECTION LIMIT 2')
    for arguments in ([], ["--check"]):
        status, output = run_odoo(fresh_db, "job_worker", *arguments)
        assert status == 1
        assert "a worker takes 3 connections, and the limit is 2" in output
