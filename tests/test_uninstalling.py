"""What is left of the addon, and whether it can come back."""

import subprocess

from tests.harness import Database, run_odoo, worker_thread
from tools.paths import ODOO_BIN

UNINSTALL = """
env["ir.module.module"].search([("name", "=", "job_worker")]).button_immediate_uninstall()
"""


def test_nothing_is_left_after_uninstalling_and_all_is_there_after_installing_again(fresh_db):
    with fresh_db.env() as env:
        env["queue.limit"].create({"name": "throttled", "limit": 1, "rate_limit": 100})
    run_a_throttled_job(fresh_db)
    fresh_db.close()
    done = subprocess.run(
        [ODOO_BIN, "shell", "-d", fresh_db.name, "--no-http"],
        input=UNINSTALL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    left = fresh_db.query("SELECT relname FROM pg_class WHERE relname ~ '^queue_(job|limit|worker)'")
    left += fresh_db.query("SELECT key FROM ir_config_parameter WHERE key LIKE 'job_worker.%'")
    assert not left
    code, output = run_odoo(fresh_db, "-i", "test_job_worker", "--stop-after-init", "--no-http", "--logfile=")
    assert code == 0, output[-3000:]
    again = Database(fresh_db.name)
    with again.env() as env:
        env["queue.limit"].create({"name": "throttled", "limit": 1, "rate_limit": 100})
    run_a_throttled_job(again)
    again.query("DELETE FROM queue_limit WHERE name = 'throttled'")
    assert not again.query("SELECT FROM queue_limit_starts")
    again.close()


def run_a_throttled_job(db):
    job = db.enqueue_one("job_nothing", channel="throttled")
    with worker_thread(db):
        db.wait_for_state(job, "done")
