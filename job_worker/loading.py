"""While modules are being installed or upgraded, no worker claims.

Odoo commits each module of an upgrade by itself, with the jobs that its migrations have stored, then runs scripts for
all of them, and tells other processes at the very end. Nothing in the database tells that the end is still to come. So
the process that loads the modules says it, with a lock that claims try for. The lock is on a connection of its own,
because it has to outlive the commits, and it ends with the process, however that ends.
"""

import threading

import psycopg2
from odoo.modules.registry import Registry
from odoo.sql_db import connection_info_for

from . import queries

POLL_SECONDS = 0.1

_holding = set()


def hold_claims(env):
    """If the registry of ``env`` is being loaded, let workers claim nothing in its database until it has been.

    To be called before what they are not to see is committed.
    """
    db_name = env.cr.dbname
    if env.registry.ready or db_name in _holding:
        return
    _name, info = connection_info_for(db_name)
    connection = psycopg2.connect(**info)
    connection.set_session("READ COMMITTED")  # whose snapshots end with the statement, and keep nobody from cleaning up
    with connection.cursor() as cr:
        queries.hold_claims(cr)
    _holding.add(db_name)
    # the lock as it is now: tests replace it
    arguments = db_name, Registry._lock, connection
    threading.Thread(target=_release, args=arguments, name="job_worker.loading", daemon=True).start()


def _release(db_name, registry_lock, connection):
    """Let workers claim again once others were told of the changes, which Registry.new() does last of all, or once it
    has failed and has let go of its lock. A server that runs tests has the lock until the last of them.
    """
    told = 0
    while told < 2:  # seen twice, because the registry is ready just before it knows that there is something to tell
        if registry_lock.acquire(timeout=POLL_SECONDS):
            registry_lock.release()
            break
        registry = Registry.registries.get(db_name)
        told = told + 1 if registry is not None and registry.ready and not registry.registry_invalidated else 0
    _holding.discard(db_name)
    connection.close()
