"""What kills a process takes along what runs beside it: once, not again and again."""

import itertools
import signal
import threading
import time

import pytest

from tests.harness import Database, Worker, wait_until, worker_thread
from tools import databases

from odoo.addons.job_worker.worker.attempt import Claim  # isort: skip
from odoo.addons.job_worker.worker.pool import Pool  # isort: skip

NOW = "(clock_timestamp() AT TIME ZONE 'UTC')"


@pytest.fixture
def roomy(db):
    """A database whose root channel has room for all."""
    db.query("UPDATE queue_limit SET \"limit\" = 1000 WHERE name = 'root'")
    return db


@pytest.fixture
def another_db():
    """A second database, dropped afterwards."""
    handle = Database(databases.clone())
    yield handle
    handle.close()
    databases.drop(handle.name)


def enqueue_suspects(db, count, seconds, died_ago=60):
    """Store jobs whose last attempt died with its worker, all due now; their ids."""
    jobs = db.enqueue("job_ledger", [(f"suspect {place}", seconds) for place in range(count)], eta=3600)
    db.query(
        f"UPDATE queue_job SET attempts = 1, worker_died_at = {NOW} - make_interval(secs => %s), scheduled_at = {NOW}"
        " WHERE id = ANY(%s)",
        died_ago,
        jobs,
    )
    return jobs


def runs(db):
    """The rows of the ledger: ``(key, pid, began, ended)``."""
    return db.query("SELECT key, pid, began_at, ended_at FROM test_job_ledger ORDER BY began_at")


def overlapping(db):
    """Pairs of keys that ran at the same time in the same process."""
    rows = runs(db)
    return {
        (one[0], other[0])
        for place, one in enumerate(rows)
        for other in rows[place + 1 :]
        if one[1] == other[1] and other[2] < one[3]
    }


@pytest.mark.parametrize("max_retries", [1, 5])
def test_a_job_that_kills_its_process_fails_alone(roomy, max_retries):
    roomy.enqueue_one("job_exit_process", max_retries=max_retries)
    roomy.enqueue("job_ledger", [(f"innocent {place}", 0.05) for place in range(20)], max_retries=max_retries)
    with Worker(roomy, concurrency=4):
        roomy.wait_until_drained(120)
    assert roomy.states() == {"done": 20, "failed": 1}
    assert set(roomy.ledger().values()) == {1}
    counted = roomy.query("SELECT job_id, count(*) FROM queue_job_attempt WHERE counted GROUP BY job_id ORDER BY 2")
    assert [number for _job, number in counted[:-1]] == [1] * (len(counted) - 1), "innocents count once, if at all"


def test_jobs_whose_worker_died_run_one_by_one_with_nothing_beside_them(roomy):
    with worker_thread(roomy, concurrency=4) as worker:
        roomy.enqueue("job_ledger", [(f"before {place}", 0.6) for place in range(3)])
        wait_until(lambda: len(worker.pool.running()) == 3, what="others run")
        enqueue_suspects(roomy, 5, 0.1)
        roomy.enqueue("job_ledger", [(f"after {place}", 0.1) for place in range(20)], eta=0.1)
        roomy.wait_until_drained()
    assert roomy.states() == {"done": 28}
    assert not [pair for pair in overlapping(roomy) if any("suspect" in key for key in pair)]
    assert [pair for pair in overlapping(roomy) if all("after" in key for key in pair)], "the others run side by side"


def test_jobs_whose_worker_died_are_shared_out_among_the_processes(roomy):
    with Worker(roomy, processes=2, concurrency=4) as worker:
        worker.wait_until_ready()
        enqueue_suspects(roomy, 4, 1)
        roomy.wait_until_drained()
        assert worker.logged("runs with nothing beside it") == 4
    assert len({pid for _key, pid, _began, _ended in runs(roomy)}) == 2
    assert not overlapping(roomy)


def test_what_waits_behind_a_job_that_runs_alone_does_not_count_as_begun_when_that_kills_the_process(roomy):
    (guilty,) = enqueue_suspects(roomy, 1, 0)
    roomy.query(
        """UPDATE queue_job SET payload = jsonb_set(payload, '{method}', '"job_exit_process"') || '{"args": []}',"""
        " max_retries = 1, priority = 9 WHERE id = %s",
        guilty,
    )
    roomy.enqueue("job_ledger", [(f"innocent {place}", 0.05) for place in range(10)])
    with Worker(roomy, concurrency=4):
        roomy.wait_until_drained()
    assert roomy.states() == {"done": 10, "failed": 1}
    assert roomy.query("SELECT DISTINCT job_id FROM queue_job_attempt") == [(guilty,)]


def test_a_job_that_ends_while_another_is_handed_over_does_not_let_it_run_beside_others():
    """What is claimed behind it goes back first, and takes its time."""
    ended, alone, order = threading.Event(), threading.Event(), []

    def run(attempt):
        order.append(attempt.claim.uuid)
        (alone if attempt.claim.runs_alone else ended).wait(10)

    def claim(name, died_ago=None):
        nothing = dict.fromkeys(Claim.__dataclass_fields__)
        return Claim(**{**nothing, "uuid": name, "died_ago": died_ago, "claimed_at": time.monotonic()})

    pool = Pool(2, run, on_idle=lambda: None, release=lambda: None)
    pool.start()
    try:
        pool.submit([claim("before")])
        wait_until(lambda: order, what="a job runs")
        with pool.claiming():
            claims, others = pool.admit([claim("alone", 60), claim("behind")])
            assert [[claim.uuid for claim in those] for those in (claims, others)] == [["alone"], ["behind"]]
            ended.set()
            wait_until(lambda: not pool.running(), what="it ends")
            pool.submit(claims)
        wait_until(lambda: len(order) == 2, what="the other runs alone")
        with pool.claiming() as demand:
            assert demand == (0, 0)
    finally:
        alone.set()
        pool.close()


def test_a_job_that_runs_alone_has_the_process_to_itself_over_all_databases(roomy, another_db):
    with worker_thread(another_db, concurrency=1) as neighbour, worker_thread(roomy) as worker:
        another_db.enqueue("job_ledger", [("long", 1.5), ("behind", 0)])
        wait_until(neighbour.pool.running, what="a job of the other database runs")
        enqueue_suspects(roomy, 1, 1)
        wait_until(lambda: worker.pool.has_waiting, what="it waits for the other database's job")
        roomy.wait_until_drained()
        another_db.wait_until_drained()
    ((_key, _pid, began, ended),) = runs(roomy)
    (_long, _pid, _began, long_ended), (_behind, _pid, behind_began, _ended) = runs(another_db)
    assert long_ended < began
    assert ended < behind_began


def test_two_databases_of_a_process_do_not_wait_for_each_others_jobs_to_run_alone(roomy, another_db):
    with worker_thread(another_db), worker_thread(roomy):
        for db in (roomy, another_db):
            enqueue_suspects(db, 5, 0.05)
        for db in (roomy, another_db):
            db.wait_until_drained()
    spans = sorted((began, ended) for db in (roomy, another_db) for _key, _pid, began, ended in runs(db))
    assert len(spans) == 10
    assert all(ended < began for (_began, ended), (began, _ended) in itertools.pairwise(spans))


def test_a_job_that_is_to_run_alone_does_not_hold_up_a_process_with_a_long_one(roomy):
    with worker_thread(roomy, concurrency=2) as worker:
        roomy.enqueue_one("job_ledger", "long", 6)
        wait_until(worker.pool.running, what="a long job runs")
        enqueue_suspects(roomy, 1, 0, died_ago=0.5)
        wait_until(lambda: worker.pool.has_waiting, what="the other waits for it")
        roomy.enqueue_one("job_ledger", "short")
        roomy.wait_until_drained()
    assert [key for key, _pid, _began, _ended in runs(roomy)] == ["long", "short", "suspect 0"]
    ended = {key: ended for key, _pid, _began, ended in runs(roomy)}
    assert ended["short"] < ended["long"]
    assert not [pair for pair in overlapping(roomy) if "suspect 0" in pair]


def test_a_job_that_waits_to_run_alone_goes_back_at_shutdown(roomy):
    with worker_thread(roomy, concurrency=2) as worker:
        roomy.enqueue_one("job_ledger", "long", 2)
        wait_until(worker.pool.running, what="a long job runs")
        (suspect,) = enqueue_suspects(roomy, 1, 0)
        wait_until(lambda: worker.pool.has_waiting, what="the other waits for it")
    assert roomy.job(suspect)["state"] == "pending"
    assert roomy.job(suspect)["attempts"] == 1
    assert roomy.value("SELECT worker_died_at IS NOT NULL FROM queue_job WHERE id = %s", suspect)
    with worker_thread(roomy):  # and holds up nobody else in the process
        roomy.wait_until_drained()


def test_a_job_that_lived_through_its_last_attempt_runs_beside_others(roomy):
    job = roomy.enqueue_one("job_sleep_then_fail", 1.5, max_retries=2)
    with Worker(roomy) as worker:
        roomy.wait_for_state(job, "started")
        worker.signal_all(signal.SIGKILL)
    with worker_thread(roomy, stale_after_seconds=1.5):
        wait_until(lambda: roomy.job(job)["attempts"] == 2, what="it was taken back, and failed by itself")
        assert roomy.value("SELECT worker_died_at IS NULL FROM queue_job WHERE id = %s", job)
        roomy.wait_for_state(job, "failed")
