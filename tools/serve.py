"""`make serve`: Odoo's web client on the demo database, with a worker beside it, until Ctrl-C.

Where `make demo` has left no jobs there, it is filled with a few thousand as they would be after a week of work.
"""

import argparse
import signal
import subprocess
import sys

from tools import databases, sample_data
from tools.console import say
from tools.paths import ODOO_BIN


def main() -> int:
    parser = argparse.ArgumentParser(prog="make serve ARGS=…", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--port", default="8069", help="port of the web client (8069)")
    parser.add_argument("--no-worker", action="store_true", help="no worker beside it")
    parser.add_argument("--no-sample", action="store_true", help="leave a database without jobs as it is")
    options = parser.parse_args()

    database = databases.demo()
    if not options.no_sample:
        fill(database)
    commands = [[ODOO_BIN, "-d", database, "--http-port", options.port]]
    if not options.no_worker:
        commands.append([ODOO_BIN, "job_worker", "-d", database])
    say(f"http://localhost:{options.port}/odoo  login: admin  password: admin  (Ctrl-C ends)")
    processes = []
    # Ctrl-C reaches them by itself.
    signal.signal(signal.SIGTERM, lambda _number, _frame: [process.terminate() for process in processes])
    for command in commands:
        processes.append(subprocess.Popen(command))
    try:
        return max(process.wait() for process in processes)
    except KeyboardInterrupt:
        return max(process.wait() for process in processes)


def fill(database: str) -> None:
    """Sample jobs for a database that has none."""
    with databases.connect(database) as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM queue_job)")
        if cursor.fetchone()[0]:
            return
    say("Sample jobs")
    with databases.environment(database) as env:
        sample_data.fill(env)


if __name__ == "__main__":
    sys.exit(main())
