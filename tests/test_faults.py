"""The faults of :mod:`tests.faults`, a few seconds of each; ``make soak`` runs them for as long as they deserve."""

import pytest

from tests import faults
from tests.harness import Database
from tools import databases, postgres


def test_processes_killed_at_random_lose_and_repeat_nothing(db):
    faults.kill_storm(db, jobs=600, workers=2, processes=2, seconds=12, interval=0.4)


def test_sessions_ended_and_a_server_crashing_lose_and_repeat_nothing():
    with postgres.throwaway() as server:
        name = databases.clone_to(server)
        database = Database(name, server.environment())
        try:
            faults.connection_storm(
                database, jobs=500, workers=2, processes=2, seconds=9, interval=0.3, restart=server.restart
            )
        finally:
            database.close()
            databases.drop(name)


def test_a_frozen_worker_that_wakes_up_repeats_nothing(db):
    faults.frozen_worker(db, jobs=8)


def test_stuck_jobs_are_stopped_beside_healthy_ones(db):
    faults.stuck_jobs(db, healthy=20)


def test_jobs_that_kill_their_process_fail_by_their_retries(db):
    faults.poison_jobs(db, healthy=50)


def test_processes_that_meet_in_one_row_lose_no_increment(db):
    faults.one_counter(db, jobs=80, processes=8)


def test_a_module_installed_and_upgraded_fails_no_job(fresh_db, tmp_path):
    faults.module_changes(fresh_db, tmp_path, load=200)


def test_copies_made_under_load_run_nothing_of_the_original(fresh_db, tmp_path):
    faults.copies_under_load(fresh_db, tmp_path, copies=3, jobs_per_copy=300)


def test_upgrades_that_store_jobs_run_none_with_the_old_code(fresh_db, tmp_path):
    faults.upgrades_that_store_jobs(fresh_db, tmp_path, versions=3, jobs=50, load=100)


def test_sigterm_under_load_leaves_nothing_started(db):
    faults.sigterm_under_load(db, rounds=3, jobs_per_round=40)


@pytest.mark.parametrize("offset", [7200, -7200])
def test_a_wrong_clock_on_the_host_does_not_matter(db, tmp_path, offset):
    faults.wrong_clock(db, tmp_path, jobs=5, offset=offset)
