"""What ``odoo-bin job_worker`` does once its options are read."""

import contextlib
import sys

import psycopg2
from odoo import sql_db
from odoo.tools import config

from .. import home, queries
from ..home import Verdict
from . import filestore
from .connection import Connection
from .home_check import REASONS
from .runner import Options, databases_with_addon, default_concurrency
from .supervisor import Supervisor


def main(arguments):
    """Run the workers, or check that they could run.

    :param arguments: parsed command line
    :return: exit status
    """
    try:
        options = Options(
            databases=tuple(config["db_name"]),
            concurrency=arguments.concurrency or default_concurrency(),
            poll_timeout=max(arguments.poll_timeout, 0.05),
            stale_after_seconds=arguments.stale_after,
            heartbeat_interval_seconds=arguments.heartbeat_interval,
            max_backoff_seconds=arguments.max_backoff,
            listen=not arguments.no_listen,
            shutdown_timeout=arguments.shutdown_timeout,
            max_jobs=arguments.max_jobs,
            max_age=arguments.max_age,
        )
        problems = list(find_problems(options))
        names = ()
        if arguments.check and not problems:
            names = options.databases or [name for name, has in (databases_with_addon() or {}).items() if has]
            problems = [problem for name in names for problem in find_oddities(name)]
    except ValueError as error:
        problems = [str(error)]
    for problem in problems:
        sys.stderr.write(f"job_worker: {problem}\n")
    if problems or arguments.check:
        if not problems:
            names = ", ".join(names)
            sys.stdout.write(f"job_worker: ready to serve {names or 'databases that will get the addon'}\n")
        return 1 if problems else 0
    return Supervisor(options, arguments.processes).run()


def find_problems(options):
    """What would keep workers from doing their job, as sentences that say what to do.

    A database that can't be reached is a problem only if it says so: a worker that starts before its database waits.
    """
    if options.concurrency > config["db_maxconn"]:
        yield f"--concurrency {options.concurrency} needs as many connections: raise db_maxconn, {config['db_maxconn']}"
    for db_name in options.databases:
        try:
            with sql_db.db_connect(db_name).cursor() as cr:
                if not queries.addon_is_installed(cr):
                    yield f"the addon job_worker is not installed in {db_name}: odoo-bin -d {db_name} -i job_worker"
        except psycopg2.OperationalError as error:
            if "does not exist" in str(error):
                yield f"can't open {db_name}: {str(error).strip()}"
        finally:
            sql_db.close_db(db_name)


def find_oddities(db_name):
    """What a worker would stumble over later in a database that it can serve, as sentences that say what to do."""
    connection = Connection(db_name, session=False)
    with contextlib.suppress(psycopg2.Error), contextlib.closing(connection), connection.transaction() as cr:
        if home.judge(cr) is Verdict.UNCLEAR:
            yield f"{db_name}: {REASONS[Verdict.UNCLEAR]}"
        if folder := filestore.find_elsewhere(cr, db_name):
            yield (
                f"{db_name}: none of the latest attachments can be read in {folder}: start the worker with the"
                " data_dir of the web server, and as its user"
            )
