"""`python3 -m tools COMMAND [ARGS…]`: what the Makefile calls. Sets the environment up, then runs the command in it."""

import errno
import os
import runpy
import shutil
import sys

from tools import postgres, setup
from tools.console import Problem, say
from tools.paths import BIN, CONF, DEV, ODOO_BIN, PYTHON, ROOT, VENV, odoo_home

# Each runs as `python -m` with the arguments given.
MODULES = {
    "demo": "tools.demo",
    "test": "tools.test",
    "lint": "tools.lint",
    "serve": "tools.serve",
    "bench": "bench",
    "soak": "tests.soak",
    "screenshots": "tools.screenshots",
}
# Each is a command of odoo-bin, on the demo database.
ODOO_COMMANDS = {"worker": "job_worker", "shell": "shell"}


def main() -> None:
    command, *args = sys.argv[1:]
    if command in ("stop", "clean"):
        stop(clean=command == "clean")
        return
    if os.environ.get("JOB_WORKER_TOOLS") != str(ROOT):
        setup.ensure()
        enter_venv()
    if command != "lint":
        postgres.ensure()
    if command in MODULES:
        sys.argv[1:] = args
        runpy.run_module(MODULES[command], run_name="__main__", alter_sys=True)
    elif command in ODOO_COMMANDS:
        from tools import databases

        databases.demo()
        os.execv(ODOO_BIN, [ODOO_BIN, ODOO_COMMANDS[command], "-d", databases.DEMO, *args])
    else:
        say("Ready. `make help` lists what can be done.")


def enter_venv() -> None:
    """Start this command again in the venv, with Odoo and our programs on its paths."""
    environment = {
        **os.environ,
        "JOB_WORKER_TOOLS": str(ROOT),
        "ODOO_RC": str(CONF),
        "PATH": f"{BIN}:{VENV / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(odoo_home()),
    }
    os.execve(PYTHON, [PYTHON, "-m", "tools", *sys.argv[1:]], environment)


def stop(clean: bool) -> None:
    with setup.locked("setup"):
        postgres.stop_all()
        if clean:
            shutil.rmtree(postgres.refuge(), ignore_errors=True)
            shutil.rmtree(DEV)


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(f"\n{problem}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit("\nThe disk is full. Make room and run the same command again.")
    except KeyboardInterrupt:
        sys.exit(130)
