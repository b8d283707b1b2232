"""``odoo-bin job_worker``. Odoo loads this file by itself, without the addon around it: hence the late imports."""

import argparse
import sys

from odoo.cli import Command

EPILOG = """
signals:
  SIGTERM, SIGINT    finish the running jobs, then exit; a second one stops at once,
                     the jobs go back to pending and nothing is counted
  SIGUSR1, SIGUSR2   pause claiming, resume
  SIGHUP             start the program anew, the old processes finish their jobs
  SIGQUIT            log what every thread is doing

examples:
  odoo-bin job_worker -c odoo.conf -d mydb
  odoo-bin job_worker -c odoo.conf -d mydb --processes 4 --concurrency 2
  odoo-bin job_worker -c odoo.conf                  every database that has the addon
  odoo-bin job_worker -c odoo.conf -d mydb --check  test the configuration, start nothing

Options not listed here are Odoo's (--log-level, --logfile, --db_host, ...).
Odoo looks for this command before it reads -c: if it says "Unknown command", put the
addons path first (odoo-bin --addons-path=... job_worker ...) or set ODOO_RC=odoo.conf.
"""


class JobWorker(Command):
    """Run background jobs: claim them from the database and execute them, until stopped."""

    name = "job_worker"
    epilog = EPILOG

    def run(self, args):
        options = self._parse(args)
        from odoo.addons.job_worker.worker import command

        sys.exit(command.main(options))

    def _parse(self, args):
        from odoo.modules import initialize_sys_path
        from odoo.tools import config

        parser = self.parser
        parser.add_argument("-c", "--config", metavar="FILE", help="Odoo's configuration file")
        parser.add_argument(
            "-d",
            "--database",
            action="append",
            metavar="NAMES",
            help="databases, separated by commas; may be repeated (default: all)",
        )
        parser.add_argument(
            "--processes", type=_at_least(1), default=1, metavar="N", help="worker processes (default: 1)"
        )
        parser.add_argument(
            "--concurrency",
            type=_at_least(1),
            metavar="N",
            help="jobs at once in each process (default: $QUEUE_JOB_CONCURRENCY or 2)",
        )
        seconds = {"type": _seconds, "metavar": "SECONDS"}
        parser.add_argument(
            "--poll-timeout", default=5.0, help="between looks when nothing wakes it (default: 5)", **seconds
        )
        parser.add_argument(
            "--stale-after", default=60.0, help="a worker silent so long is dead (default: 60)", **seconds
        )
        parser.add_argument("--heartbeat-interval", default=15.0, help="between signs of life (default: 15)", **seconds)
        parser.add_argument(
            "--max-backoff", default=3600.0, help="longest wait between retries (default: 3600)", **seconds
        )
        parser.add_argument("--shutdown-timeout", help="give jobs back that still run so long after SIGTERM", **seconds)
        parser.add_argument(
            "--max-jobs", type=_at_least(0), default=0, metavar="N", help="replace a process after N jobs"
        )
        parser.add_argument("--max-age", default=0.0, help="replace a process after so long", **seconds)
        parser.add_argument("--no-listen", action="store_true", help="poll only, for poolers that know no LISTEN")
        parser.add_argument("--check", action="store_true", help="test configuration and database, start nothing")
        options, others = parser.parse_known_args(args)
        if not 0 < options.heartbeat_interval < options.stale_after:
            parser.error("--heartbeat-interval must be above 0 and below --stale-after")
        odoo_args = [*(["-c", options.config] if options.config else []), *others]
        if options.database:
            odoo_args += ["-d", ",".join(options.database)]
        config.parse_config(odoo_args, setup_logging=True)
        initialize_sys_path()
        return options


def _at_least(minimum):
    def number(text):
        if not text.isdigit() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {minimum}")
        return int(text)

    return number


def _seconds(text):
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value
