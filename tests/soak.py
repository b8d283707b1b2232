"""``make soak``: every fault of :mod:`tests.faults` for as long as it deserves, and a table of the counts.

``make soak ARGS="kill frozen"`` runs those whose names contain one of the words.
"""

import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests import faults
from tests.harness import Database
from tools import databases, postgres

COLUMNS = ("expected", "once", "lost", "repeated", "foreign", "started", "failed")


def on_own_server(fault, **sizes):
    """Run a fault that crashes its server on one of its own."""
    with postgres.throwaway() as server:
        name = databases.clone_to(server)
        database = Database(name, server.environment())
        try:
            return fault(database, restart=server.restart, **sizes)
        finally:
            database.close()
            databases.drop(name)


def in_clone(fault, **sizes):
    """Run a fault in a database of its own."""
    database = Database(databases.clone())
    try:
        return fault(database, **sizes)
    finally:
        database.close()
        databases.drop(database.name)


def in_clone_and_folder(fault, **sizes):
    """Run a fault that also writes files."""
    with tempfile.TemporaryDirectory() as folder:
        return in_clone(fault, folder=Path(folder), **sizes)


STORM = {"jobs": 5000, "workers": 3, "processes": 2, "seconds": 60, "interval": 0.3}
FAULTS = {
    "kill storm": (in_clone, faults.kill_storm, STORM),
    "connection storm, two crashes": (on_own_server, faults.connection_storm, STORM),
    "frozen worker": (in_clone, faults.frozen_worker, {"jobs": 60}),
    "stuck jobs": (in_clone, faults.stuck_jobs, {"healthy": 500}),
    "poison jobs": (in_clone, faults.poison_jobs, {"healthy": 500}),
    "one counter, 8 processes": (in_clone, faults.one_counter, {"jobs": 1000, "processes": 8}),
    "module installed, upgraded": (in_clone_and_folder, faults.module_changes, {"load": 2000}),
    "copied 20 times under load": (in_clone_and_folder, faults.copies_under_load, {"copies": 20, "jobs_per_copy": 400}),
    "upgrades that store jobs": (
        in_clone_and_folder,
        faults.upgrades_that_store_jobs,
        {"versions": 12, "jobs": 300, "load": 1000},
    ),
    "SIGTERM under load, 20 times": (in_clone, faults.sigterm_under_load, {"rounds": 20, "jobs_per_round": 100}),
    "clock two hours ahead": (in_clone_and_folder, faults.wrong_clock, {"jobs": 50, "offset": 7200}),
    "clock two hours behind": (in_clone_and_folder, faults.wrong_clock, {"jobs": 50, "offset": -7200}),
}


def main(words):
    """Run the faults whose names contain one of ``words``, or all; the exit status."""
    chosen = {name: fault for name, fault in FAULTS.items() if not words or any(word in name for word in words)}
    rows, failed = [], 0
    for name, (place, fault, sizes) in chosen.items():
        print(f"==> {name}", flush=True)
        start, count = time.monotonic(), {}
        try:
            count = place(fault, **sizes)
            verdict = "ok"
        except Exception:
            traceback.print_exc()
            failed += 1
            verdict = "FAILED"
        rows.append(
            [name, *(str(count.get(column, "?")) for column in COLUMNS), f"{time.monotonic() - start:.0f} s", verdict]
        )
    print_table([["fault", *COLUMNS, "took", ""], *rows])
    print(f"{len(rows) - failed} passed, {failed} failed", flush=True)
    return 1 if failed or not rows else 0


def print_table(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        _name, *cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
