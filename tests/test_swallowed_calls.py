"""What callers rely on and can't see: jobs that begin or end while a transaction that counts on them is still open."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import psycopg2
import pytest
from odoo import SUPERUSER_ID, api
from odoo.exceptions import ConcurrencyError
from odoo.modules.registry import Registry
from odoo.service.model import retrying

from tests.harness import Worker, ticks, wait_until, worker_thread  # first: it puts the addons on the path

from odoo.addons.job_worker.delay import chain, group  # isort: skip
from odoo.addons.job_worker.lifecycle import move  # isort: skip
from odoo.addons.job_worker.worker import claiming, recovery  # isort: skip

USUAL_TIMES = {"stale-after": 60, "heartbeat-interval": 15, "poll-timeout": 5}
SOON = 3  # seconds
HELD = 6000


@contextmanager
def caller(db, isolation=None):
    """An environment of its own whose transaction has begun: its snapshot is taken. Not committed at the end."""
    with Registry(db.name).cursor() as cr:
        if isolation is not None:
            cr._cnx.set_isolation_level(isolation)
        cr.execute("SELECT count(*) FROM queue_job")
        yield api.Environment(cr, SUPERUSER_ID, {})
        cr.rollback()


def call(env, method="job_ledger", *args, **options):
    """Enqueue a call under the key of these tests; the id of the job."""
    return getattr(env["test.job.target"].with_delay(identity_key="key", **options), method)(*args or ("again",)).id


@pytest.fixture
def held(db):
    """A pending job with the key, in a channel that is paused until its name is passed to ``open_channel``."""
    with db.env() as env:
        env["queue.limit"].create({"name": "held", "limit": 0})
    yield db.enqueue_one("job_ledger", "first", channel="held", identity_key="key")
    db.query("DELETE FROM queue_limit WHERE name = 'held'")


def open_channel(db):
    with db.env() as env:
        env["queue.limit"].search([("name", "=", "held")]).limit = 10


@contextmanager
def worker_between_sweeps(db):
    """A worker with the usual times that has just looked at all waiting jobs: it does so again in 15 s."""
    with db.env() as env:
        target = env["test.job.target"]
        ended, found = chain(target.delayable().job_nothing(), target.delayable().job_nothing()).delay().ids
    db.query("UPDATE queue_job SET state = 'done', completed_at = create_date, is_due = false WHERE id = %s", ended)
    with Worker(db, times=USUAL_TIMES) as worker:
        db.wait_for_state(found, "done")
        yield worker


# --- identity keys ----------------------------------------------------------------------------------------------------


def test_a_pending_job_that_stands_for_a_call_does_not_begin_before_the_caller_has_committed(db, held, monkeypatch):
    monkeypatch.setattr(claiming, "DISCOVER_SECONDS", 60)  # nobody looks for what was passed by unless told to
    with worker_thread(db, poll_timeout=60), caller(db) as env:
        assert call(env) == held
        open_channel(db)
        others = db.enqueue("job_nothing", [()] * 5, channel="held")
        for other in others:
            db.wait_for_state(other, "done")
        assert db.job(held)["state"] == "pending"
        env.cr.commit()
        db.wait_for_state(held, "done", timeout=SOON)


def test_a_job_that_ended_since_the_snapshot_swallows_no_call(db):
    job = db.enqueue_one("job_ledger", "first", identity_key="key")
    with caller(db) as env:
        with worker_thread(db):
            db.wait_for_state(job, "done")
        with pytest.raises(psycopg2.errors.SerializationFailure):
            call(env)


def test_a_job_that_began_since_the_snapshot_swallows_no_call(db):
    job = db.enqueue_one("job_sleep", 2, identity_key="key")
    with caller(db) as env, worker_thread(db):
        db.wait_for_state(job, "started")
        with pytest.raises(psycopg2.errors.SerializationFailure):
            call(env)


def test_a_job_that_ran_at_the_snapshot_and_has_ended_swallows_no_call(db):
    job = db.enqueue_one("job_sleep", 1, identity_key="key")
    with worker_thread(db):
        db.wait_for_state(job, "started")
        with caller(db) as env:
            db.wait_for_state(job, "done")
            with pytest.raises(psycopg2.errors.SerializationFailure):
                call(env)


def test_a_running_job_that_stands_for_a_call_ends_while_the_caller_is_still_open(db):
    job = db.enqueue_one("job_sleep", 1, identity_key="key")
    with worker_thread(db):
        db.wait_for_state(job, "started")
        with caller(db) as env:
            assert call(env) == job
            db.wait_for_state(job, "done")
            env.cr.commit()


def test_a_job_that_enqueues_its_own_call_again_gets_itself(db):
    job = db.enqueue_one("job_enqueue_again", "key", identity_key="key")
    with worker_thread(db):
        assert db.wait_for_state(job, "done", "failed")["state"] == "done"
    assert db.value("SELECT result FROM queue_job WHERE id = %s", job) == job


def test_callers_share_a_pending_job_and_wait_for_nobody(db, held):
    with caller(db) as one, caller(db) as other:
        other.cr.execute("SET LOCAL lock_timeout = '1ms'")
        assert (call(one), call(other)) == (held, held)


def test_a_request_whose_call_was_about_to_be_swallowed_is_tried_again(db):
    first = db.enqueue_one("job_ledger", "first", identity_key="key")
    with worker_thread(db), db.env() as env:
        env.cr.execute("SELECT count(*) FROM queue_job")
        db.wait_for_state(first, "done")
        second = retrying(lambda: call(env), env)
        env.cr.commit()
        db.wait_for_state(second, "done")
    assert db.ledger() == {"first": 1, "again": 1}


def test_a_job_that_callers_hold_without_a_gap_begins_all_the_same(db):
    over = threading.Event()

    def call_again_and_again():
        while not over.is_set():
            with caller(db) as env, suppress(psycopg2.errors.SerializationFailure, ConcurrencyError):
                call(env)
                for _tick in ticks(0.2, 0.2):
                    pass
                env.cr.commit()

    with ThreadPoolExecutor() as executor, Worker(db):
        callers = [executor.submit(call_again_and_again) for _caller in range(12)]
        try:
            wait_until(lambda: db.states().get("done"), what="the job runs")
        finally:
            over.set()
    for done in callers:
        done.result()


def test_jobs_behind_many_that_a_caller_holds_go_on(db):
    def call_all(env):
        calls = (env["test.job.target"].delayable(identity_key=f"key {n}").job_nothing() for n in range(HELD))
        return group(*calls).delay()

    with db.env() as env:
        held = call_all(env).ids
    with caller(db) as env:
        assert call_all(env).ids == held
        others = db.enqueue("job_nothing", [()] * 300)
        with worker_thread(db):
            wait_until(
                lambda: db.value("SELECT count(*) FROM queue_job WHERE id = ANY(%s) AND state = 'done'", others) == 300,
                what="the others run",
            )
        assert db.states() == {"done": 300, "pending": HELD}


def test_a_caller_at_read_committed_is_refused_a_job_that_began_while_it_looked(db, held):
    with ThreadPoolExecutor() as executor, caller(db, psycopg2.extensions.ISOLATION_LEVEL_READ_COMMITTED) as env:
        with db.env() as claimer:
            move(claimer.cr, "claim", [held], worker_id="w")
            called = executor.submit(call, env)
            wait_until(lambda: db.sessions("wait_event_type = 'Lock'"), what="the caller waits")
        with pytest.raises(ConcurrencyError):
            called.result()


def test_a_waiting_job_that_stands_for_a_call_is_promoted_once_the_caller_has_committed(db, held):
    with db.env() as env:
        last = env["queue.job"].enqueue("test.job.target", "job_nothing", parent_id=held, identity_key="last").id
    with worker_between_sweeps(db):
        with caller(db) as env:
            assert env["test.job.target"].with_delay(identity_key="last").job_nothing().id == last
            open_channel(db)
            db.wait_for_state(held, "done")
            assert all(db.job(last)["state"] == "waiting" for _tick in ticks(0.5, 0.1))
            env.cr.commit()
        db.wait_for_state(last, "done", timeout=SOON)


# --- jobs after jobs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["running", "ended"])
def test_a_job_stored_behind_one_that_ends_unseen_runs_at_once(db, at):
    with worker_between_sweeps(db):
        parent = db.enqueue_one("job_sleep", 0.15)  # too short for the worker to look for children of its own accord
        with caller(db) as env:
            db.wait_for_state(parent, "done" if at == "ended" else "started")
            child = env["queue.job"].enqueue("test.job.target", "job_nothing", parent_id=parent).id
            env.cr.commit()
        db.wait_for_state(child, "done", timeout=SOON)


def test_a_graph_behind_a_known_job_that_ended_unseen_runs_at_once(db):
    with worker_between_sweeps(db):
        known = db.enqueue_one("job_sleep", 0.5, identity_key="key")
        db.wait_for_state(known, "started")
        with caller(db) as env:
            target = env["test.job.target"]
            jobs = chain(
                target.delayable(identity_key="key").job_nothing(),
                *(target.delayable().job_nothing() for _number in range(2)),
            ).delay()
            last = jobs[-1].id
            assert jobs[0].id == known
            db.wait_for_state(known, "done")
            env.cr.commit()
        db.wait_for_state(last, "done", timeout=SOON)


def test_a_worker_that_only_polls_looks_at_all_waiting_jobs_in_a_row(db, held, monkeypatch):
    monkeypatch.setattr(recovery, "SWEEP_BATCH", 50)
    with db.env() as env:
        target = env["test.job.target"]
        group(*(target.delayable().job_nothing() for _job in range(200))).delay()
        ended, found = chain(target.delayable().job_nothing(), target.delayable().job_nothing()).delay().ids
    waiting = "UPDATE queue_job SET state = 'waiting', is_due = false, parent_id = %s WHERE id < %s AND id != %s"
    db.query(waiting, held, ended, held)
    db.query("UPDATE queue_job SET state = 'done', completed_at = create_date, is_due = false WHERE id = %s", ended)
    with worker_thread(db, listen=False, stale_after_seconds=60, heartbeat_interval_seconds=15):
        db.wait_for_state(found, "done")


@pytest.mark.parametrize("end", ["run_now", "button_set_to_done"])
def test_parents_that_end_in_transactions_that_do_not_see_each_other_release_their_child_at_once(db, held, end):
    with db.env() as env:
        target = env["test.job.target"]
        parents = [target.with_delay(channel="held").job_nothing() for _side in range(2)]
        child = (
            env["queue.job"].enqueue("test.job.target", "job_nothing", dependency_job_ids=[p.id for p in parents]).id
        )
        parents = [parent.id for parent in parents]
    with worker_between_sweeps(db):
        with ThreadPoolExecutor() as executor, caller(db) as one, caller(db) as other:
            first, second = (env["queue.job"].browse(job) for env, job in zip((one, other), parents, strict=True))
            getattr(first, end)()
            ended = executor.submit(getattr(second, end))
            wait_until(lambda: ended.done() or db.sessions("wait_event_type = 'Lock'"))
            one.cr.commit()
            ended.result()
            other.cr.commit()
        db.wait_for_state(child, "done", timeout=SOON)


def test_a_child_stored_while_its_parent_is_ended_by_hand_runs_at_once(db, held):
    with worker_between_sweeps(db):
        with caller(db) as storing, caller(db) as ending:
            child = storing["queue.job"].enqueue("test.job.target", "job_nothing", parent_id=held).id
            ending["queue.job"].browse(held).button_set_to_done()
            storing.cr.commit()
            ending.cr.commit()
        db.wait_for_state(child, "done", timeout=SOON)


def test_a_waiting_job_that_somebody_was_changing_when_its_parent_ended_runs_at_once(db, held):
    with db.env() as env:
        child = env["queue.job"].enqueue("test.job.target", "job_nothing", parent_id=held).id
    with worker_between_sweeps(db), caller(db) as env:
        env["queue.job"].browse(child).priority = 3
        env.flush_all()
        open_channel(db)
        db.wait_for_state(held, "done")
        env.cr.commit()
        db.wait_for_state(child, "done", timeout=SOON)
