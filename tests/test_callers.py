"""Jobs whose user or company is deleted."""

import pytest

from tests.harness import wait_until, worker_thread  # first: it puts the addons on the path

from odoo.addons.job_worker.worker import job_cursor, queue_worker  # isort: skip


@pytest.fixture
def user(db):
    """Id of a user of a company of their own, and of that company."""
    with db.env() as env:
        company = env["res.company"].create({"name": "To be deleted"})
        values = {"name": "To be deleted", "login": "deleted", "company_id": company.id, "company_ids": company.ids}
        user = env["res.users"].create({**values, "group_ids": [(4, env.ref("base.group_system").id)]})
        ids = user.id, company.id
    yield ids
    delete(db, *ids)


def delete(db, user_id, company_id=None):
    """Delete a user, and maybe a company, with all that is left of them."""
    db.query("DELETE FROM res_users WHERE id = %s", user_id)
    if company_id:
        db.query("UPDATE res_partner SET company_id = NULL WHERE company_id = %s", company_id)
        db.query("DELETE FROM res_company WHERE id = %s", company_id)


def enqueue_as(db, user_id, method, *args, companies=None, su=False):
    with db.env() as env:
        context = {"allowed_company_ids": companies} if companies else {}
        target = env(user=user_id, su=su, context=context)["test.job.target"].sudo(su).create({})
        return getattr(target.with_delay(), method)(*args).id


def attempts(db, job):
    return db.query("SELECT outcome, counted FROM queue_job_attempt WHERE job_id = %s", job)


@pytest.mark.parametrize("what", ["user", "company"])
def test_a_job_whose_user_or_company_is_deleted_while_it_runs_fails_and_is_not_run_again(db, user, what):
    user_id, company_id = user
    job = enqueue_as(db, user_id, "job_witness", "once", 1.5, su=True)
    with worker_thread(db):
        wait_until(db.ledger, what="it runs")
        if what == "company":
            db.query("UPDATE res_users SET company_id = 1 WHERE id = %s", user_id)
            db.query("UPDATE res_partner SET company_id = NULL WHERE company_id = %s", company_id)
            db.query("DELETE FROM res_company WHERE id = %s", company_id)
        else:
            delete(db, user_id)
        error = db.wait_for_state(job, "failed")["exc_info"]
    assert f"{what}" in error.lower().splitlines()[-1], error
    assert "not found: it was deleted" in error
    assert db.ledger() == {"once": 1}
    assert attempts(db, job) == [("failed", True)]


def test_a_job_whose_user_is_deleted_while_it_waits_for_a_thread_does_not_begin(db, user, monkeypatch):
    monkeypatch.setattr(queue_worker, "GIVE_BACK_AFTER_SECONDS", 60)
    monkeypatch.setattr(job_cursor, "SURE_SECONDS", 0)
    db.enqueue("job_nothing", [()] * 300)
    with worker_thread(db, concurrency=1) as worker:
        db.wait_until_drained()
        db.query("SELECT pg_advisory_lock(4711)")
        with db.env() as env:  # in one transaction, so that they are claimed together
            target = env["test.job.target"]
            target.with_delay(priority=1).job_execute("SELECT pg_advisory_xact_lock(4711)")
            job = target.with_user(user[0]).sudo().with_delay().job_witness("never").id
        wait_until(lambda: len(worker.pool.claims()) == 2, what="both are claimed")
        delete(db, user[0])
        db.query("SELECT pg_advisory_unlock(4711)")
        assert "The user of the job was not found" in db.wait_for_state(job, "failed")["exc_info"]
    assert not db.ledger()
    assert attempts(db, job) == [("failed", True)]


def test_a_job_of_a_user_who_is_gone_fails_with_its_first_try(db, user):
    job = enqueue_as(db, user[0], "job_witness", "never")
    delete(db, *user)
    with worker_thread(db):
        error = db.wait_for_state(job, "failed")["exc_info"]
    assert error.endswith("The user of the job was not found: it was deleted.\n"), error
    assert attempts(db, job) == [("failed", True)]
    assert not db.ledger()


@pytest.mark.parametrize("companies", [1, 2])
def test_a_job_that_fails_for_want_of_a_company_says_so_and_fails_with_its_first_try(db, user, companies):
    user_id, company_id = user
    with db.env() as env:
        env["res.users"].browse(user_id).company_ids += env.ref("base.main_company")
    allowed = [company_id, 1][:companies]
    job = enqueue_as(db, user_id, "job_environment", companies=allowed)
    with db.env() as env:
        env["res.users"].browse(user_id).company_id = 1
    db.query("UPDATE res_partner SET company_id = NULL WHERE company_id = %s", company_id)
    db.query("DELETE FROM res_company WHERE id = %s", company_id)
    with worker_thread(db):
        error = db.wait_for_state(job, "failed")["exc_info"]
    assert error.endswith(f"Company {company_id} of the job was not found: it was deleted.\n"), error
    assert attempts(db, job) == [("failed", True)]
