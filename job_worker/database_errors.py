"""What an error of the database is about: the one place that tells."""

import psycopg2
from odoo.service.model import PG_CONCURRENCY_EXCEPTIONS_TO_RETRY
from psycopg2 import errors

# connection exceptions, insufficient resources, operator intervention, read-only transaction, sessions that were ended
_TROUBLE_CODES = ("08", "53", "57", "25006", "25P03", "25P04")


def is_trouble(error):
    """Whether the database failed, not the statement: it is away, out of resources, or read-only for now."""
    if not isinstance(error, psycopg2.Error):
        return False
    if error.pgcode is not None:
        return error.pgcode.startswith(_TROUBLE_CODES) and not isinstance(error, errors.QueryCanceled)
    # What libpq says, not the server, has no code. Of a connection that stands, as after an answer that there was no
    # memory for, it is about the statement.
    if error.cursor is not None:
        return bool(error.cursor.connection.closed)
    return type(error) in (psycopg2.OperationalError, psycopg2.InterfaceError)


def is_passing(error):
    """Whether the same may well succeed a moment later: the database failed, or somebody was in the way."""
    return isinstance(error, (*PG_CONCURRENCY_EXCEPTIONS_TO_RETRY, errors.QueryCanceled)) or is_trouble(error)
