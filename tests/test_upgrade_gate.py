"""What a worker does about modules that are being changed, or are not of the version of its code."""

import os
import signal
import subprocess
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from odoo.modules.registry import Registry

from tests.harness import Worker, addons_path_with, run_odoo, ticks, wait_until  # first: it puts the addons on the path
from tools.paths import ODOO_BIN

from odoo.addons.job_worker import queries  # isort: skip
from odoo.addons.job_worker.loading import hold_claims  # isort: skip
from odoo.addons.job_worker.worker.connection import Connection  # isort: skip

ADDON = "job_worker_gate"
MODEL = """
from odoo import models


class Gate(models.AbstractModel):
    _name = "test.job.gate"
    _description = "Gate"

    def note(self):
        self.env["test.job.ledger"].create({{"key": "{label}"}})
"""
STORES_A_JOB = """
from odoo import SUPERUSER_ID, api


def migrate(cr, version):
    api.Environment(cr, SUPERUSER_ID, {})["test.job.gate"].with_delay().note()
"""
WAITS = """
import pathlib, time


def migrate(cr, version):
    while not pathlib.Path({flag!r}).exists():
        time.sleep(0.05)
"""


class Addon:
    """An addon on the addons path of a test, to be installed and upgraded."""

    def __init__(self, database, folder):
        self._database, self._folder = database, folder
        (folder / "addons").mkdir(parents=True)
        self.environment = addons_path_with(folder / "addons", folder / "odoo.conf")
        self.flag = folder / "flag"

    def write(self, version, label=None, **files):
        """Write its code; ``label`` is what its jobs write into the ledger."""
        manifest = {"name": ADDON, "version": version, "depends": ["test_job_worker"], "author": "-"}
        files = {
            "__manifest__.py": repr({**manifest, "license": "LGPL-3"}),
            "__init__.py": "from . import models",
            "models.py": MODEL.format(label=label or version),
            **files,
        }
        for name, text in files.items():
            file = self._folder / "addons" / ADDON / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def write_migration(self, version):
        """Write ``version`` with a migration that stores a job, and an end-script that waits for :attr:`flag`."""
        scripts = {"post-store.py": STORES_A_JOB, "end-wait.py": WAITS.format(flag=str(self.flag))}
        self.write(version, **{f"migrations/{version}/{name}": text for name, text in scripts.items()})

    def install(self, switch="-i"):
        status, output = run_odoo(
            self._database, switch, ADDON, "--stop-after-init", "--no-http", environment=self.environment
        )
        assert status == 0, output[-3000:]

    def upgrade(self):
        self.install("-u")

    @contextmanager
    def upgrading(self):
        """An upgrade that has come to the wait at its end, with its jobs committed; killed at the end of the block."""
        command = [ODOO_BIN, "-d", self._database.name, "-u", ADDON, "--stop-after-init", "--no-http"]
        process = subprocess.Popen(
            list(map(str, command)), env={**os.environ, **self.environment}, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: self._database.unfinished(), 60, "the migration's job is committed")
            yield process
        finally:
            process.kill()
            process.wait()

    def enqueue(self):
        """Store a job of the addon, as a server would that has its code."""
        code = "env['test.job.gate'].with_delay().note(); env.cr.commit()"
        done = subprocess.run(
            [str(ODOO_BIN), "shell", "-d", self._database.name, "--no-http"],
            input=code,
            text=True,
            capture_output=True,
            env={**os.environ, **self.environment},
            check=True,
        )
        assert "Traceback" not in done.stderr, done.stderr[-3000:]


@pytest.fixture
def addon(fresh_db, tmp_path):
    addon = Addon(fresh_db, tmp_path / "new")
    addon.write("19.0.1.0.0")
    addon.install()
    return addon


def mark(db, name, state):
    db.query("UPDATE ir_module_module SET state = %s WHERE name = %s", state, name)


def said(db):
    """What the worker's row says."""
    rows = db.query("SELECT state, reason FROM queue_worker WHERE state != 'dead'")
    return rows[0] if rows else (None, None)


def nothing_starts(db, seconds=3):
    return not any(set(db.states()) - {"pending"} for _tick in ticks(seconds, 0.2))


# --- an upgrade that is going on -------------------------------------------------------------------------------------


def test_no_job_of_a_migration_runs_before_the_upgrade_has_ended(fresh_db, addon):
    with Worker(fresh_db, environment=addon.environment) as old:
        old.wait_until_ready()
        addon.write_migration("19.0.2.0.0")
        with addon.upgrading() as upgrade, Worker(fresh_db, environment=addon.environment) as new:
            assert nothing_starts(fresh_db)
            assert "modules are being installed or upgraded" in new.log()
            assert said(fresh_db)[0] == "blocked"
            addon.flag.touch()
            upgrade.wait()
            fresh_db.wait_until_drained()
    assert fresh_db.ledger() == {"19.0.2.0.0": 1}
    assert fresh_db.value("SELECT count(*) FROM queue_job_attempt") == 0


def test_what_a_killed_upgrade_stored_runs_with_the_new_code(fresh_db, addon):
    with Worker(fresh_db, environment=addon.environment) as worker:
        worker.wait_until_ready()
        addon.write_migration("19.0.2.0.0")
        with addon.upgrading() as upgrade:
            assert nothing_starts(fresh_db, 2)
            upgrade.send_signal(signal.SIGKILL)
            fresh_db.wait_until_drained()
    assert fresh_db.ledger() == {"19.0.2.0.0": 1}


def test_code_that_changes_within_a_version_is_loaded_after_the_upgrade(fresh_db, addon):
    with Worker(fresh_db, environment=addon.environment) as worker:
        worker.wait_until_ready()
        addon.write("19.0.1.0.0", "changed")
        addon.upgrade()
        addon.enqueue()
        fresh_db.wait_until_drained()
    assert fresh_db.ledger() == {"changed": 1}


def test_whoever_upgrades_waits_for_claims_that_have_begun_and_others_wait_for_it(db):
    loading = SimpleNamespace(cr=SimpleNamespace(dbname=db.name), registry=SimpleNamespace(ready=False))
    holder = threading.Thread(target=hold_claims, args=(loading,))
    claim, later = Connection(db.name), Connection(db.name)

    def is_closed():
        with later.transaction() as cr:
            return not queries.gate_state(cr)[2]

    try:
        with Registry._lock:  # as while a registry is being loaded
            with claim.transaction() as cr:
                assert queries.gate_state(cr)[2], "nobody holds it"
                holder.start()
                wait_until(is_closed, what="it is asked for, which is enough for later claims")
                assert holder.is_alive()
            holder.join(10)
            assert not holder.is_alive()
            assert is_closed()
        wait_until(lambda: not is_closed(), what="it is free when the registry has been loaded")
    finally:
        claim.close()
        later.close()


# --- code and database of different versions -------------------------------------------------------------------------


def test_a_worker_with_older_code_leaves_newer_jobs_alone_until_it_gets_the_code(fresh_db, addon, tmp_path):
    here = Addon(fresh_db, tmp_path / "old")
    here.write("19.0.1.0.0")
    with Worker(fresh_db, environment=here.environment) as worker:
        worker.wait_until_ready()
        addon.write("19.0.2.0.0")
        addon.upgrade()
        addon.enqueue()
        assert nothing_starts(fresh_db)
        wait_until(lambda: said(fresh_db)[0] == "blocked", what="the worker's row says that it is blocked")
        assert f"{ADDON} (19.0.1.0.0, database: 19.0.2.0.0)" in said(fresh_db)[1]
        here.write("19.0.2.0.0")
        fresh_db.wait_until_drained()
    assert fresh_db.ledger() == {"19.0.2.0.0": 1}
    assert fresh_db.value("SELECT count(*) FROM queue_job_attempt") == 0


def test_a_worker_with_newer_code_waits_for_the_upgrade(fresh_db, addon):
    addon.write("19.0.2.0.0")
    addon_job = fresh_db.enqueue_one("job_nothing")
    with Worker(fresh_db, environment=addon.environment) as worker:
        worker.wait_until_ready()
        assert nothing_starts(fresh_db)
        assert f"{ADDON} (19.0.2.0.0, database: 19.0.1.0.0)" in worker.log()
        addon.upgrade()
        fresh_db.wait_for_state(addon_job, "done")


def test_a_worker_without_the_code_of_a_module_leaves_the_jobs_alone(fresh_db, addon):
    job = fresh_db.enqueue_one("job_nothing")
    with Worker(fresh_db) as worker:
        worker.wait_until_ready()
        assert nothing_starts(fresh_db)
        assert f"{ADDON} (no code, database: 19.0.1.0.0)" in worker.log()
        fresh_db.query("UPDATE ir_module_module SET imported = true WHERE name = %s", ADDON)  # as data: it has none
        fresh_db.wait_for_state(job, "done")


# --- modules left behind ---------------------------------------------------------------------------------------------


def test_a_module_that_stays_to_be_upgraded_is_named_everywhere_and_left_as_it_is(fresh_db):
    mark(fresh_db, "web_tour", "to upgrade")
    job = fresh_db.enqueue_one("job_nothing")
    with Worker(fresh_db) as worker:
        worker.wait_until_ready()
        assert nothing_starts(fresh_db, 2)
        assert "web_tour (to upgrade)" in worker.log()
        state, reason = said(fresh_db)
        assert (state, "web_tour" in reason) == ("blocked", True)
        with fresh_db.env() as env:
            assert "web_tour" in env["queue.job"].browse(job).standing
            assert "web_tour" in env["queue.dashboard"].get_now()["workers"]["each"][0]["reason"]
        assert not worker.logged("odoo.modules.loading"), "it has loaded a registry"
        assert fresh_db.value("SELECT state FROM ir_module_module WHERE name = 'web_tour'") == "to upgrade"
        mark(fresh_db, "web_tour", "installed")
        fresh_db.wait_for_state(job, "done")
        wait_until(lambda: said(fresh_db) == ("running", None), what="the worker's row says that it works")


def test_a_module_marked_while_a_worker_runs_stops_its_claims(fresh_db):
    with Worker(fresh_db, concurrency=1) as worker:
        worker.wait_until_ready()
        running = fresh_db.enqueue_one("job_sleep", 3)
        fresh_db.wait_for_state(running, "started")
        mark(fresh_db, "web_tour", "to upgrade")
        job = fresh_db.enqueue_one("job_nothing")
        fresh_db.wait_for_state(running, "done")
        assert fresh_db.job(job)["state"] == "pending"
        wait_until(lambda: said(fresh_db)[0] == "blocked", what="the worker's row says that it is blocked")
        mark(fresh_db, "web_tour", "installed")
        fresh_db.wait_for_state(job, "done")
        assert worker.logged("starts anew") == 0


def test_a_partially_updated_database_is_not_updated_by_a_worker(fresh_db):
    parameter = "base.partially_updated_database"
    mark(fresh_db, "web_tour", "to upgrade")
    fresh_db.query("INSERT INTO ir_config_parameter (key, value) VALUES (%s, '1')", parameter)
    with Worker(fresh_db, processes=2) as worker:
        worker.wait_until_ready()
        assert all(state == "blocked" for _tick in ticks(2, 0.2) for state in [said(fresh_db)[0]])
        assert fresh_db.value("SELECT count(*) FROM ir_config_parameter WHERE key = %s", parameter) == 1
        assert fresh_db.value("SELECT state FROM ir_module_module WHERE name = 'web_tour'") == "to upgrade"
        mark(fresh_db, "web_tour", "installed")
        wait_until(lambda: worker.logged("partially updated"), what="the other reason is told")
        assert said(fresh_db)[0] == "blocked"
        fresh_db.query("DELETE FROM ir_config_parameter WHERE key = %s", parameter)
        wait_until(lambda: said(fresh_db) == ("running", None), what="the gate opens")


def test_the_gate_can_be_turned_off(fresh_db):
    job = fresh_db.enqueue_one("job_nothing")
    mark(fresh_db, "web_tour", "to upgrade")
    with Worker(fresh_db, environment={"JOB_WORKER_UPGRADE_GATE": "0"}):
        fresh_db.wait_for_state(job, "done")


# --- changes without changed code ------------------------------------------------------------------------------------


def test_a_custom_field_is_loaded_in_place(fresh_db):
    slow = fresh_db.enqueue_one("job_ledger", "slow", 6)
    with Worker(fresh_db) as worker:
        fresh_db.wait_for_state(slow, "started")
        with fresh_db.env() as env:
            model = env["ir.model"]._get("test.job.target").id
            env["ir.model.fields"].create({"model_id": model, "name": "x_gate", "ttype": "char"})
            env.cr.commit()
            env.registry.signal_changes()
        with fresh_db.env() as env:
            job = env["test.job.target"].with_delay(max_retries=1).create({"name": "new", "x_gate": "there"}).id
        fresh_db.wait_for_state(job, "done")
        assert fresh_db.value("SELECT x_gate FROM test_job_target WHERE name = 'new'") == "there"
        assert fresh_db.job(slow)["state"] == "started"
        fresh_db.wait_for_state(slow, "done")
        assert worker.logged("recycles itself") == worker.logged("starts anew") == 0
        assert worker.logged("registry changed, reloaded") == 1


def test_a_module_that_is_installed_is_loaded_in_place(fresh_db, tmp_path):
    addon = Addon(fresh_db, tmp_path / "new")
    addon.write("19.0.1.0.0")
    with Worker(fresh_db, environment=addon.environment) as worker:
        worker.wait_until_ready()
        addon.install()
        addon.enqueue()
        fresh_db.wait_until_drained()
        assert worker.logged("starts anew") == 0
    assert fresh_db.ledger() == {"19.0.1.0.0": 1}


def test_server_wide_modules_are_loaded(fresh_db, tmp_path):
    loaded = tmp_path / "loaded"
    addon = Addon(fresh_db, tmp_path / "new")
    addon.write("19.0.1.0.0", **{"__init__.py": f"open({str(loaded)!r}, 'w').close()"})
    with (tmp_path / "new" / "odoo.conf").open("a") as file:
        file.write(f"server_wide_modules = base,web,{ADDON}\n")
    with Worker(fresh_db, environment=addon.environment) as worker:
        worker.wait_until_ready()
        assert loaded.exists()


# --- without the addon -----------------------------------------------------------------------------------------------


def change_addon(db, method):
    code = f"""
env["ir.module.module"].search([("name", "=", "job_worker")]).{method}()
env.cr.commit()
"""
    command = [str(ODOO_BIN), "shell", "-d", db.name, "--no-http"]
    subprocess.run(command, input=code, text=True, capture_output=True, check=True)


def test_a_worker_waits_in_silence_for_an_addon_that_was_uninstalled(fresh_db):
    with Worker(fresh_db) as worker:
        worker.wait_until_ready()
        change_addon(fresh_db, "button_immediate_uninstall")
        wait_until(lambda: worker.logged("the addon was removed"), what="it is told")
        before = len(worker.log().splitlines())
        assert all(len(worker.log().splitlines()) <= before + 2 for _tick in ticks(6, 0.5)), worker.log()[-3000:]
        change_addon(fresh_db, "button_immediate_install")
        wait_until(lambda: said(fresh_db)[0] == "running", 60, "it works again")
