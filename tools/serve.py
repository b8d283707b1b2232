"""`make serve`: Odoo's web client on the demo database, with a worker beside it, until Ctrl-C."""

import argparse
import subprocess
import sys

from tools import databases
from tools.console import say
from tools.paths import ODOO_BIN


def main() -> int:
    parser = argparse.ArgumentParser(prog="make serve ARGS=…", description=__doc__)
    parser.add_argument("--port", default="8069", help="port of the web client (8069)")
    parser.add_argument("--no-worker", action="store_true", help="no worker beside it")
    options = parser.parse_args()

    database = databases.demo()
    commands = [[ODOO_BIN, "-d", database, "--http-port", options.port]]
    if not options.no_worker:
        commands.append([ODOO_BIN, "job_worker", "-d", database])
    say(f"http://localhost:{options.port}/odoo  login: admin  password: admin  (Ctrl-C ends)")
    processes = [subprocess.Popen(command) for command in commands]
    try:
        # Ctrl-C reaches them too: all that is left to do is to wait.
        return max(process.wait() for process in processes)
    except KeyboardInterrupt:
        return max(process.wait() for process in processes)


if __name__ == "__main__":
    sys.exit(main())
