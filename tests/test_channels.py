"""Limits hold over all workers, whatever they do; what is throttled or behind costs the others nothing."""

import itertools

import psycopg2
import pytest

from tests.harness import Worker, ticks, wait_until, worker_thread  # first: it puts the addons on the path

from odoo.addons.job_worker.lifecycle import move  # isort: skip
from odoo.addons.job_worker.worker import claiming  # isort: skip
from odoo.addons.job_worker.worker.connection import Connection  # isort: skip
from odoo.addons.job_worker.worker.pool import Pool  # isort: skip


def set_limit(db, channel, limit, rate_limit=0):
    """Create or change a ``queue.limit``, as the user interface does."""
    with db.env() as env:
        limits = env["queue.limit"].search([("name", "=", channel)])
        values = {"name": channel, "limit": limit, "rate_limit": rate_limit}
        limits.write(values) if limits else limits.create(values)


def move_all(db, transition, rows):
    """Take the jobs in rows of ids through a transition, while workers may be claiming some of them."""
    with db.env() as env:
        env.cr.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        move(env.cr, transition, [job_id for (job_id,) in rows])


def runs(db, prefix):
    """``(began, ended)`` of the ledger's rows whose key begins with ``prefix``, in seconds of the database's clock."""
    return db.query("SELECT began_at, ended_at FROM test_job_ledger WHERE key LIKE %s ORDER BY began_at", f"{prefix}%")


def most_at_once(intervals):
    """The highest number of intervals that overlap in a moment."""
    # where one ends as another begins, it ends first
    moments = sorted([(began, 1) for began, _ended in intervals] + [(ended, -1) for _began, ended in intervals])
    return max(itertools.accumulate(step for _moment, step in moments))


def most_in_a_window(moments, seconds):
    """The highest number of moments within any window."""
    return max(sum(first <= other < first + seconds for other in moments) for first in moments)


def test_starts_from_before_the_servers_clock_was_set_back_hold_up_nothing(db):
    set_limit(db, "slow", 100, rate_limit=5)
    db.query(
        "INSERT INTO queue_limit_starts (limit_id, starts)"
        " SELECT id, array_agg(now() AT TIME ZONE 'UTC' + interval '1 hour')"
        " FROM queue_limit CROSS JOIN generate_series(1, 5) WHERE name = 'slow' GROUP BY id"
    )
    db.enqueue("job_ledger", [(f"slow:{number}",) for number in range(10)], channel="slow")
    with Worker(db):
        db.wait_until_drained(20)
    assert most_in_a_window([began for began, _ended in runs(db, "slow")], 1) <= 5


def test_limits_hold_over_all_processes_of_all_workers(db):
    limits = {"one": 1, "three": 3, "bare": 1}
    set_limit(db, "one", 1)
    set_limit(db, "three", 3)
    keys = []
    for channel in limits:
        calls = [(f"{channel}:{number}", 0.02) for number in range(40)]
        db.enqueue("job_ledger", calls, channel=channel)
        keys += [key for key, _seconds in calls]
    with (
        Worker(db, processes=2, concurrency=3) as first,
        Worker(db, processes=2, concurrency=3) as second,
    ):
        db.wait_until_drained(90)
        assert first.running and second.running
    db.count(keys).check()
    for channel, limit in limits.items():
        assert most_at_once(runs(db, channel)) <= limit, channel
    assert most_at_once(runs(db, "three")) > 1


def test_a_limit_counts_what_is_retried_at_once(db):
    set_limit(db, "narrow", 2)
    db.enqueue("job_ledger", [(f"narrow:{number}", 0.03) for number in range(20)], channel="narrow")
    db.enqueue("job_fail", [("retry_now",)] * 10, channel="narrow", max_retries=3)
    with Worker(db, processes=2, concurrency=3):
        db.wait_until_drained(60)
    assert most_at_once(runs(db, "narrow")) <= 2
    assert db.states() == {"done": 20, "failed": 10}


def test_a_rate_holds_in_every_sliding_second(db):
    set_limit(db, "slow", 100, rate_limit=5)
    db.enqueue("job_ledger", [(f"slow:{number}",) for number in range(16)], channel="slow")
    with Worker(db, processes=2, concurrency=3):
        db.wait_until_drained(60)
    moments = [began for began, _ended in runs(db, "slow")]
    assert len(moments) == 16
    # what the processor was busy with between the claim and the job's first line is not the limit's to tell
    assert most_in_a_window(moments, 0.9) <= 5


def test_a_rate_below_one_spaces_the_starts(db):
    set_limit(db, "rare", 100, rate_limit=0.5)
    db.enqueue("job_ledger", [(f"rare:{number}",) for number in range(3)], channel="rare")
    with worker_thread(db):
        db.wait_until_drained(30)
    moments = [began for began, _ended in runs(db, "rare")]
    assert min(later - sooner for sooner, later in itertools.pairwise(moments)) >= 1.9


def test_a_pause_takes_effect_within_a_second_and_resuming_too(db):
    set_limit(db, "busy", 2)
    db.enqueue("job_ledger", [(f"busy:{number}", 0.02) for number in range(400)], channel="busy")
    with worker_thread(db, poll_timeout=30):
        wait_until(lambda: len(runs(db, "busy")) > 10, what="jobs run")
        set_limit(db, "busy", 0)
        paused_at = db.value("SELECT extract(epoch FROM clock_timestamp())::float")
        wait_until(
            lambda: db.value("SELECT extract(epoch FROM clock_timestamp())::float") > paused_at + 2, what="two seconds"
        )
        assert max(began for began, _ended in runs(db, "busy")) < paused_at + 1
        assert db.unfinished()
        set_limit(db, "busy", 8)
        db.wait_until_drained(60)


def test_channels_that_are_paused_or_full_hold_up_nobody(db):
    set_limit(db, "paused", 0)
    db.enqueue("job_nothing", [()] * 50, channel="paused", priority=1)
    db.enqueue("job_sleep", [(60,)] * 3, channel="full", priority=2)
    db.enqueue("job_ledger", [(f"root:{number}",) for number in range(30)], priority=20)
    with Worker(db, concurrency=2):
        wait_until(lambda: len(runs(db, "root")) == 30, 30, "the jobs of root run")
        assert db.query("SELECT channel, count(*)::int FROM queue_job WHERE state = 'started' GROUP BY channel") == [
            ("full", 1)
        ]
        assert db.value("SELECT count(*) FROM queue_job WHERE channel = 'paused' AND state = 'pending'") == 50


def test_better_jobs_come_first_across_channels(db):
    priorities = [30, 10, 20, 10, 5, 20, 30, 5]
    for number, priority in enumerate(priorities):
        db.enqueue_one("job_ledger", f"{priority:02}:{number}", channel=f"channel{number % 3}", priority=priority)
    with worker_thread(db, concurrency=1):
        db.wait_until_drained(30)
    keys = [key for (key,) in db.query("SELECT key FROM test_job_ledger ORDER BY began_at")]
    assert keys == sorted(keys)


def test_a_scheduled_job_comes_after_unscheduled_ones_of_its_priority(db):
    with db.env() as env:
        target = env["test.job.target"]
        target.with_delay(eta=-60).job_ledger("2:scheduled a minute ago")
        target.with_delay(eta=-3600).job_ledger("1:scheduled an hour ago")
        target.with_delay().job_ledger("0:not scheduled")
    with worker_thread(db, concurrency=1):
        db.wait_until_drained(30)
    keys = [key for (key,) in db.query("SELECT key FROM test_job_ledger ORDER BY began_at")]
    assert keys == sorted(keys)


@pytest.mark.parametrize("listen", [True, False])
def test_jobs_that_become_claimable_behind_the_horizon_are_found(db, listen):
    """With an old snapshot open, so that dead entries stay in the indexes, and with many jobs still to come."""
    snapshot = psycopg2.connect(dbname=db.name, host=db.server.get("PGHOST"), user=db.server.get("PGUSER"))
    try:
        with snapshot.cursor() as cr:
            cr.execute("SELECT txid_current()")
        cancelled = db.enqueue_one("job_ledger", "requeued")
        with db.env() as env:
            env["queue.job"].browse(cancelled).button_cancelled()
        db.enqueue("job_ledger", [(f"root:{number}", 0.02) for number in range(3000)], channel="root")
        with worker_thread(db, concurrency=1, listen=listen):
            wait_until(lambda: len(runs(db, "root")) > 20, what="jobs run")
            with db.env() as env:
                env["queue.job"].browse(cancelled).button_requeue()
            db.enqueue_one("job_ledger", "better", priority=1)
            db.enqueue_one("job_ledger", "elsewhere", channel="elsewhere", priority=1)
            for key in ("requeued", "better", "elsewhere"):
                wait_until(lambda key=key: runs(db, key), what=f"{key} runs")
            left = db.query("SELECT id FROM queue_job WHERE state = 'pending'")
            assert left, "they ran before the others, not after them"
            move_all(db, "cancel", left)
    finally:
        snapshot.close()


def test_jobs_that_somebody_is_changing_hold_up_nobody(db):
    """Neither those behind them in their channel, nor those of other channels."""
    best = db.enqueue("job_nothing", [()] * 30, priority=1)
    db.enqueue("job_ledger", [(f"root:{number}",) for number in range(20)])
    db.enqueue("job_ledger", [(f"other:{number}",) for number in range(20)], channel="other")
    with db.locked(*best), worker_thread(db, concurrency=1):
        wait_until(lambda: len(runs(db, "root")) == len(runs(db, "other")) == 20, what="the others run")
        assert db.states() == {"done": 40, "pending": 30}


def test_a_job_moved_or_rescheduled_while_it_is_being_claimed_is_not_started(db, monkeypatch):
    """The change commits between the claim's choice and its lock on the row."""
    set_limit(db, "paused", 0)
    moved, later = db.enqueue_one("job_ledger", "moved"), db.enqueue_one("job_ledger", "later")
    sql = claiming._STATEMENTS["claim"]
    lock = (
        "), locked AS MATERIALIZED (",
        "), pause AS MATERIALIZED (SELECT pg_sleep(1) FROM best LIMIT 1), locked AS MATERIALIZED (",
    )
    slow = sql.replace(*lock).replace(
        "AND CASE state WHEN 'pending' THEN is_due AND",
        "AND (SELECT count(*) FROM pause) >= 0 AND CASE state WHEN 'pending' THEN is_due AND",
    )
    monkeypatch.setitem(claiming._STATEMENTS, "claim", slow)
    with worker_thread(db):
        wait_until(lambda: db.sessions("wait_event = 'PgSleep'"), what="a claim has chosen")
        with db.env() as env:
            env["queue.job"].browse(moved).channel = "paused"
            env["queue.job"].browse(later).eta = "2099-01-01 00:00:00"
        for _tick in ticks(3, 0.5):
            pass
    assert db.states() == {"pending": 2}


def test_short_jobs_claimed_ahead_do_not_starve_a_better_job_of_a_narrow_channel(db):
    """With one thread that always has something waiting, a job that can't be claimed ahead must get its turn."""
    db.enqueue("job_ledger", [(f"root:{number}", 0.02) for number in range(3000)])
    with worker_thread(db, concurrency=1, listen=False) as worker:
        wait_until(lambda: worker.pool.has_waiting, what="jobs are claimed ahead")
        db.enqueue_one("job_ledger", "narrow", channel="narrow", priority=1)
        wait_until(lambda: runs(db, "narrow"), 15, "the better job runs")
        left = db.query("SELECT id FROM queue_job WHERE state = 'pending'")
        assert left, "it ran before the others, not after them"
        move_all(db, "cancel", left)


def test_a_better_job_for_which_others_went_back_stays_claimed(db, monkeypatch):
    """What goes back is told to all workers, also to the one that gave it back; however late its threads wake up."""

    def start_no_thread(pool):
        pool._average = 0.001

    monkeypatch.setattr(Pool, "start", start_no_thread)
    db.enqueue("job_nothing", [()] * 20)
    with worker_thread(db, concurrency=1) as worker:
        wait_until(lambda: worker.pool.has_waiting, what="jobs are claimed ahead")
        better = db.enqueue_one("job_nothing", channel="narrow", priority=1)
        db.wait_for_state(better, "started")
        db.enqueue_one("job_nothing", channel="narrow", priority=1)  # as good, and there is no room for it
        claims = {db.value("SELECT claim_seq FROM queue_job WHERE id = %s", better) for _tick in ticks(2, 0.1)}
        assert len(claims) == 1, f"claimed {len(claims)} times"


def test_while_a_long_job_runs_nothing_is_claimed_ahead(db):
    """What is given back because the thread is busy must not be claimed again and again meanwhile."""
    db.enqueue("job_nothing", [()] * 300)
    long = db.enqueue_one("job_sleep", 60)
    db.enqueue("job_nothing", [()] * 50)
    with worker_thread(db, concurrency=1) as worker:
        db.wait_for_state(long, "started")
        wait_until(lambda: any(attempt.duration > 1 for attempt in worker.pool.running()), what="the long job runs")
        claims = "SELECT last_value FROM queue_job_claim_seq"
        before = db.value(claims)
        for _tick in ticks(2, 0.5):
            pass
        assert db.value(claims) == before
        assert db.states() == {"done": 300, "started": 1, "pending": 50}
        worker.stop_now()


def test_a_long_job_keeps_nothing_back_that_was_claimed_ahead(db):
    """Short jobs are claimed ahead of the threads; when a long one comes between, another worker gets them."""
    db.enqueue("job_nothing", [()] * 300)
    db.enqueue("job_sleep", [(20,)])
    db.enqueue("job_ledger", [(f"root:{number}",) for number in range(50)])
    with worker_thread(db, concurrency=1) as worker:
        wait_until(
            lambda: any(attempt.duration > 0.1 for attempt in worker.pool.running()) or not db.unfinished(),
            what="the long job runs",
        )
        with worker_thread(db, concurrency=1):
            wait_until(lambda: len(runs(db, "root")) == 50, 15, "the others ran elsewhere")
        worker.stop_now()
    assert db.value("SELECT max(attempts) FROM queue_job") == 0


def test_a_role_that_may_not_create_temporary_objects_can_run_a_worker(db, monkeypatch):
    told = []
    refused = "DO $$ BEGIN RAISE insufficient_privilege; END $$"
    monkeypatch.setattr(claiming, "_FUNCTION", refused)
    monkeypatch.setattr(claiming.events, "no_function", told.append)
    set_limit(db, "narrow", 1)
    db.enqueue("job_ledger", [(f"root:{number}",) for number in range(20)])
    db.enqueue("job_ledger", [(f"narrow:{number}",) for number in range(5)], channel="narrow")
    with worker_thread(db):
        db.wait_until_drained()
    assert len(runs(db, "root")) == 20
    assert len(runs(db, "narrow")) == 5
    assert told


def test_channels_are_counted_after_they_are_locked_whatever_the_server_is_set_to(db):
    db.query(f"ALTER DATABASE \"{db.name}\" SET default_transaction_isolation = 'repeatable read'")
    claims = claiming.Claiming(session=True)
    connection = Connection(db.name, lambda cr: claims.prepare(cr, "json_build_array()"))
    try:
        with connection.transaction(single_statement=True) as cr:
            assert claims._has_function
            cr.execute("SHOW transaction_isolation")
            assert cr.fetchone() == ("read committed",)
    finally:
        connection.close()
        db.query(f'ALTER DATABASE "{db.name}" RESET default_transaction_isolation')
