"""The daily vacuum, as Odoo's cron runs it: batch after batch, each in a transaction of its own."""

from tests.harness import Database  # first: it puts the addons on the path

from odoo.addons.job_worker.models import queue_job_actions  # isort: skip


def test_the_vacuum_goes_on_behind_what_it_can_not_delete(fresh_db: Database, monkeypatch):
    monkeypatch.setattr(queue_job_actions, "VACUUM_BATCH", 10)
    jobs = fresh_db.enqueue("job_nothing", [()] * 60)
    fresh_db.query("UPDATE queue_job SET state = 'done', completed_at = now() - interval '40 days', is_due = false")
    fresh_db.query("CREATE TABLE keeps_jobs (job_id integer REFERENCES queue_job ON DELETE RESTRICT)")
    kept = [*jobs[:10], jobs[25]]  # all of a batch, and one of another
    fresh_db.query("INSERT INTO keeps_jobs SELECT unnest(%s)", kept)
    with fresh_db.locked(jobs[40]), fresh_db.env() as env:
        cron = env.ref("base.autovacuum_job")
        env["ir.autovacuum"].with_context(cron_id=cron.id)._run_vacuum_cleaner()
    assert [job_id for (job_id,) in fresh_db.query("SELECT id FROM queue_job ORDER BY id")] == [*kept, jobs[40]]
