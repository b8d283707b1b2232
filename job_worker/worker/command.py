"""What ``odoo-bin job_worker`` does once its options are read."""

import contextlib
import os
import sys
from dataclasses import replace

import psycopg2
from odoo.service.server import load_server_wide_modules
from odoo.tools import config

from .. import home, queries
from ..home import Verdict
from . import events, filestore
from .connection import Connection
from .gate import Gate
from .home_check import REASONS
from .runner import Options, databases_with_addon, default_concurrency
from .supervisor import DRAINING_VARIABLE, Supervisor

# One for claims, one for signs of life, one for a job.
LEAST_CONNECTIONS = 3


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
        if options.concurrency > config["db_maxconn"]:
            raise ValueError(
                f"--concurrency {options.concurrency} needs as many connections: raise db_maxconn,"
                f" {config['db_maxconn']}"
            )
        if arguments.check:
            return check(options)
        if options.databases:
            try:
                options = replace(options, databases=servable(databases_with_addon()))
                if problems := [problem for name in options.databases for problem in find_bottlenecks(name)]:
                    raise ValueError("\njob_worker: ".join(problems))
            except ValueError:
                if DRAINING_VARIABLE not in os.environ:
                    raise
                # A service that runs already does not end for that, with jobs that still run: it waits for them.
    except ValueError as error:
        sys.stderr.write(f"job_worker: {error}\n")
        return 1
    load_server_wide_modules()
    return Supervisor(options, arguments.processes).run()


def servable(found):
    """The databases that can be served, or may be: one that can't be reached is waited for.

    :param dict found: see :func:`.runner.databases_with_addon`
    :raise ValueError: none can
    """
    unusable = {}
    for name, has_addon in found.items():
        if has_addon is False:
            unusable[name] = f"the addon job_worker is not installed in {name}: odoo-bin -d {name} -i job_worker"
        elif f'database "{name}" does not exist' in str(has_addon):
            unusable[name] = f"can't open {name}: {str(has_addon).strip()}"
    if len(unusable) == len(found):
        raise ValueError("\njob_worker: ".join(unusable.values()))
    for problem in unusable.values():
        events.database_left_out(problem)
    return tuple(name for name in found if name not in unusable)


def check(options):
    """Tell what would keep workers from doing their job, as sentences that say what to do.

    :return: exit status
    :raise ValueError: none of the databases can be served
    """
    try:
        found = databases_with_addon()
    except psycopg2.Error as error:
        raise ValueError(f"can't ask the server for its databases: {str(error).strip()}") from error
    names = servable(found) if options.databases else [name for name, has in found.items() if has]
    problems = [
        f"can't open {name}: {str(found[name]).strip()}" for name in names if isinstance(found[name], Exception)
    ]
    problems = problems or [problem for name in names for problem in (*find_bottlenecks(name), *find_oddities(name))]
    for problem in problems:
        sys.stderr.write(f"job_worker: {problem}\n")
    if not problems:
        sys.stdout.write(f"job_worker: ready to serve {', '.join(names) or 'databases that will get the addon'}\n")
    return 1 if problems else 0


def find_bottlenecks(db_name):
    """Why no worker can work on a database that it can reach, as sentences that say what to do."""
    connection = Connection(db_name, session=False)
    with contextlib.suppress(psycopg2.Error), contextlib.closing(connection), connection.transaction() as cr:
        if (limit := queries.connection_limit(cr)) < LEAST_CONNECTIONS:
            yield (
                f"{db_name}: a worker takes {LEAST_CONNECTIONS} connections, and the limit is {limit}: raise that of"
                " the server, the role or the database"
            )


def find_oddities(db_name):
    """What a worker would stumble over later in a database that it can serve, as sentences that say what to do."""
    connection = Connection(db_name, session=False)
    with contextlib.suppress(psycopg2.Error), contextlib.closing(connection), connection.transaction() as cr:
        if home.judge(cr) is Verdict.UNCLEAR:
            yield f"{db_name}: {REASONS[Verdict.UNCLEAR]}"
        if reason := Gate(db_name).why_closed():
            yield f"{db_name}: {reason}"
        if folder := filestore.find_elsewhere(cr, db_name):
            yield (
                f"{db_name}: none of the latest attachments can be read in {folder}: start the worker with the"
                " data_dir of the web server, and as its user"
            )
