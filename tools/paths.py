"""Where things are. Everything but the sources lives in `.dev/` of the checkout."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEV = ROOT / ".dev"
BIN = DEV / "bin"
CACHE = DEV / "cache"
CONF = DEV / "odoo.conf"
DATA = DEV / "data"
LOG = DEV / "log"
ODOO = DEV / "odoo"
CHROMIUM = DEV / "chromium"
PGBOUNCER = DEV / "pgbouncer"
VENV = DEV / "venv"
PYTHON = VENV / "bin" / "python"
ODOO_BIN = BIN / "odoo-bin"

ADDONS = ("job_worker", "test_job_worker")


def odoo_home() -> Path:
    """The folder that holds the `odoo` package: ODOO_HOME, or the fetched one."""
    return Path(os.environ.get("ODOO_HOME") or ODOO / "usr/lib/python3/dist-packages")
