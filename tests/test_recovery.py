"""What the living do for the dead."""

import signal

import psycopg2

from tests.harness import STALE_AFTER, Worker, ticks, wait_until, worker_thread  # first: it puts the addons on the path

from odoo.addons.job_worker import queries  # isort: skip
from odoo.addons.job_worker.delay import chain  # isort: skip
from odoo.addons.job_worker.lifecycle import move  # isort: skip

CLAIM = (
    "UPDATE queue_job SET state = 'started', worker_id = %s, claim_seq = nextval('queue_job_claim_seq'),"
    " started_at = now() AT TIME ZONE 'UTC' WHERE id = %s"
)


def claim_by(db, worker, *job_ids):
    """Leave jobs as the claim of ``worker`` leaves them."""
    for job_id in job_ids:
        db.query(CLAIM, worker, job_id)


def add_worker(db, name, age, slots=1, stale_after=None):
    db.query(
        "INSERT INTO queue_worker (name, state, slots, stale_after, last_heartbeat)"
        " VALUES (%s, 'running', %s, %s, now() AT TIME ZONE 'UTC' - make_interval(secs => %s))",
        name,
        slots,
        stale_after,
        age,
    )


def test_jobs_of_a_worker_that_has_no_row_are_recovered(db):
    job = db.enqueue_one("job_ledger", "orphan")
    claim_by(db, "ghost", job)
    with worker_thread(db):
        assert db.wait_for_state(job, "done", timeout=20)["attempts"] == 1
    assert db.ledger() == {"orphan": 1}


def test_the_error_of_a_recovered_job_says_whose_it_was(db):
    job = db.enqueue_one("job_ledger", "orphan", max_retries=1)
    db.query("UPDATE queue_job SET attempts = 1, exc_info = 'an earlier error' WHERE id = %s", job)
    claim_by(db, "ghost", job)
    with worker_thread(db):
        error = db.wait_for_state(job, "failed", timeout=20)["exc_info"]
    assert error.startswith("an earlier error"), error
    assert "WorkerDiedJobError: worker ghost is gone" in error
    ((own_error,),) = db.query("SELECT error FROM queue_job_attempt WHERE job_id = %s", job)
    assert "an earlier error" not in own_error
    assert "WorkerDiedJobError: worker ghost is gone" in own_error


def test_a_job_that_fails_with_its_worker_is_an_error_in_the_log(db, caplog):
    jobs = db.enqueue("job_ledger", [("last try",), ("first try",)], max_retries=1)
    db.query("UPDATE queue_job SET attempts = 1 WHERE id = %s", jobs[0])
    claim_by(db, "ghost", *jobs)
    with worker_thread(db):
        db.wait_for_state(jobs[0], "failed", timeout=20)
        errors = wait_until(lambda: [r.getMessage() for r in caplog.records if r.levelname == "ERROR"], what="an error")
    uuid = db.value("SELECT uuid FROM queue_job WHERE id = %s", jobs[0])
    assert len(errors) == 1
    assert f"job failed: job={jobs[0]} uuid={uuid}" in errors[0]
    assert "WorkerDiedJobError: worker ghost is gone" in errors[0]


def test_only_what_a_dead_worker_had_begun_counts_as_an_attempt(db):
    jobs = [db.enqueue_one("job_ledger", f"job {number}") for number in range(4)]
    add_worker(db, "dead", age=2 * STALE_AFTER, slots=1)
    claim_by(db, "dead", *jobs)
    with worker_thread(db):
        db.wait_until_drained(20)
    assert [db.job(job)["attempts"] for job in jobs] == [1, 0, 0, 0]
    assert db.ledger() == {f"job {number}": 1 for number in range(4)}


def test_a_job_that_was_to_be_cancelled_when_its_worker_died_is_cancelled(db):
    job = db.enqueue_one("job_ledger", "cancelled")
    add_worker(db, "dead", age=2 * STALE_AFTER)
    claim_by(db, "dead", job)
    db.query("UPDATE queue_job SET cancel_requested = true WHERE id = %s", job)
    with worker_thread(db):
        db.wait_for_state(job, "cancelled", timeout=20)
    assert not db.ledger()


def test_jobs_of_a_silent_worker_are_left_alone_until_it_is_stale(db):
    job = db.enqueue_one("job_ledger", "slow")
    add_worker(db, "silent", age=0)
    claim_by(db, "silent", job)
    with worker_thread(db):
        db.wait_for_state(job, "done", timeout=20)
    silent_for = db.value(
        "SELECT extract(epoch FROM ended_at - started_at) FROM queue_job_attempt"
        " WHERE job_id = %s AND outcome = 'died'",
        job,
    )
    assert silent_for >= STALE_AFTER


def test_a_worker_that_may_be_silent_for_longer_than_its_neighbour_is_left_alone(db):
    job = db.enqueue_one("job_ledger", "slow")
    add_worker(db, "patient", age=2 * STALE_AFTER, stale_after=300)
    add_worker(db, "dead", age=2 * STALE_AFTER)
    claim_by(db, "patient", job)
    with worker_thread(db):
        wait_until(lambda: "dead" not in db.workers(), what="another silent one is buried")
        assert "patient" in db.workers()
    assert db.job(job)["worker_id"] == "patient"


def test_a_worker_frozen_in_the_middle_of_its_heartbeat_does_not_hold_up_the_others(db):
    add_worker(db, "dead", age=2 * STALE_AFTER)
    add_worker(db, "frozen", age=2 * STALE_AFTER)
    job = db.enqueue_one("job_ledger", "orphan")
    claim_by(db, "dead", job)
    frozen = psycopg2.connect(dbname=db.name, host=db.server.get("PGHOST"), port=db.server.get("PGPORT"))
    try:
        with frozen.cursor() as cr:
            cr.execute("UPDATE queue_worker SET last_heartbeat = now() WHERE name = 'frozen'")
            with worker_thread(db) as worker:
                db.wait_for_state(job, "done", timeout=20)
                wait_until(lambda: worker.name in db.workers(), what="the worker still reports")
    finally:
        frozen.close()


def test_a_worker_killed_between_commit_and_promotion_leaves_a_child_that_is_promoted(db):
    with db.env() as env:
        target = env["test.job.target"]
        parent = target.delayable().job_ledger("parent")
        parent.on_done(target.delayable().job_ledger("child"))
        parent.delay()
    # all that a worker has done by the time of its commit
    db.query("UPDATE queue_job SET state = 'done', completed_at = now() WHERE state = 'pending'")
    with worker_thread(db):
        db.wait_until_drained(20)
    assert db.states() == {"done": 2}
    assert db.ledger() == {"child": 1}


def test_a_child_that_somebody_is_changing_does_not_silence_the_workers(db):
    """They look after waiting jobs and give signs of life in the same thread."""
    with db.env() as env:
        target = env["test.job.target"]
        jobs = chain(target.delayable().job_nothing(), target.delayable().job_nothing()).delay()
        parent, child = jobs.ids
        move(env.cr, "run_now", [parent])
        move(env.cr, "finish", [parent], duration=0, result=None)
    with worker_thread(db):
        with db.locked(child):
            for _tick in ticks(3 * STALE_AFTER, 0.5):
                age = (
                    "SELECT extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - last_heartbeat) FROM queue_worker"
                )
                assert db.value(age) < STALE_AFTER
            assert db.job(child)["state"] == "waiting"
        db.wait_for_state(child, "done")


def test_a_jump_of_the_servers_clock_buries_nobody_at_once(db, monkeypatch):
    jump = 0
    upkeep_due = queries.upkeep_due
    monkeypatch.setattr(queries, "upkeep_due", lambda *args: (*upkeep_due(*args)[:2], upkeep_due(*args)[2] + jump))
    with worker_thread(db):
        for _tick in ticks(1.5, 0.5):  # it has looked at the clock
            pass
        jump = 90
        add_worker(db, "another", age=90)
        for _tick in ticks(2, 0.5):
            assert "another" in db.workers()
        wait_until(lambda: "another" not in db.workers(), what="a worker that does not report is taken for dead")


def test_a_worker_whose_registration_was_committed_and_not_answered_registers_again(db):
    add_worker(db, "again", age=0)
    with worker_thread(db, name="again"):
        job = db.enqueue_one("job_nothing")
        db.wait_for_state(job, "done")


def test_all_workers_of_a_process_that_is_known_to_be_dead_are_buried_at_once(db):
    """One that was taken for dead before goes by a name that was made of its first one."""
    jobs = db.enqueue("job_ledger", [("first name",), ("another name",), ("another process",)])
    names = ["host-1", "host-1/ab12", "host-12"]
    for name, job in zip(names, jobs, strict=True):
        add_worker(db, name, age=0)
        claim_by(db, name, job)
    with worker_thread(db, predecessors=[("host-1", "it was killed")], stale_after_seconds=60):
        for job in jobs[:2]:
            db.wait_for_state(job, "done", timeout=20)
            assert "it was killed" in db.value("SELECT error FROM queue_job_attempt WHERE job_id = %s", job)
        assert db.job(jobs[2])["state"] == "started"


def test_a_heartbeat_of_the_future_keeps_no_dead_worker_alive(db):
    job = db.enqueue_one("job_sleep", 60, max_retries=1)
    with Worker(db) as worker:
        db.wait_for_state(job, "started")
        worker.signal_all(signal.SIGKILL)
    db.query("UPDATE queue_worker SET last_heartbeat = last_heartbeat + interval '1 hour'")
    with Worker(db):
        wait_until(lambda: db.job(job)["attempts"] == 1, 20, "its job is taken back")


def test_workers_that_live_survive_a_clock_that_is_set_back(db):
    with Worker(db, concurrency=1) as worker:
        worker.wait_until_ready()
        job = db.enqueue_one("job_ledger", "undisturbed", 2 * STALE_AFTER)
        db.wait_for_state(job, "started")
        db.query("UPDATE queue_worker SET last_heartbeat = last_heartbeat + interval '1 hour'")
        with Worker(db) as other:
            other.wait_until_ready()
            assert db.wait_for_state(job, "done")["attempts"] == 0
            assert not worker.logged("taken for dead")
