"""Connections of the worker's own, apart from those that jobs run on; opened again when they broke."""

import contextlib
import os
import random
import socket
import time
from contextlib import contextmanager

import psycopg2
from odoo.sql_db import connection_info_for
from odoo.tools import SQL

from .. import queries
from ..database_errors import is_trouble

# Without answer for this long, a connection counts as broken; a transaction left open that long by a frozen process
# loses its locks.
DEAD_AFTER_SECONDS = 15
KEEPALIVES = {
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": DEAD_AFTER_SECONDS * 1000,
    "connect_timeout": 10,
}
"""For libpq: a host that is gone is noticed within seconds, not within the hours that the system's defaults take."""
# A claim or a heartbeat lost in a crash of the server is as if it had not been made: no need to wait for the disk.
# Plans are to go by the indexes, and by those that have the order asked for, whatever the statistics say: they may be
# of a queue that was empty, where reading all that is pending to sort it looks cheap.
_SETTINGS = {
    "synchronous_commit": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    # Before PostgreSQL 18, what is switched off and done all the same counts as so dear that it seems worth compiling.
    "jit": "off",
    "idle_in_transaction_session_timeout": f"{DEAD_AFTER_SECONDS}s",
    "statement_timeout": "60s",
    # Somebody who holds a row for long is to hold up neither claims nor signs of life.
    "lock_timeout": "2s",
}
SCARCE_SECONDS = 60.0
_REFUSALS = ("too many c", "remaining connection slots")  # clients already, connections for database or role
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0


class Scarcity:
    """Whether the server refused this process a connection lately: then they are shared in turns, not kept while there
    is nothing to do.
    """

    def __init__(self):
        self._until = 0.0

    def __bool__(self):
        return time.monotonic() < self._until

    def note(self, error):
        """Take note of an error, which may be such a refusal. There is only its text to tell.

        :return: whether it is the first one for some time
        """
        if not isinstance(error, psycopg2.OperationalError) or not any(text in str(error) for text in _REFUSALS):
            return False
        known, self._until = bool(self), time.monotonic() + SCARCE_SECONDS
        return not known


scarcity = Scarcity()
"""Of this process."""


class Line:
    """The socket of a connection, to be cut by another thread than the one that waits for an answer on it.

    :param connection: of psycopg2
    """

    def __init__(self, connection):
        # of our own: the number of psycopg2's may be another file's by the time it is cut
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))

    def cut(self):
        """Let whoever waits for an answer find the connection broken."""
        with contextlib.suppress(OSError):  # it is broken already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._socket.close()


class Connection:
    """One connection to a database that is opened when it is needed, and opened again after it broke.

    Not for several threads at once, but for :meth:`cut_if_silent`.

    :param str db_name: database
    :param on_open: called with a cursor each time the connection was opened
    :param bool session: what is set stays set; a pooler may give each transaction another session
    """

    def __init__(self, db_name, on_open=None, session=True):
        self._db_name = db_name
        self._on_open = on_open
        self._session = session
        self._connection = None
        self._line = None
        self._waiting_since = None

    @property
    def is_open(self):
        return self._connection is not None and not self._connection.closed

    @contextmanager
    def transaction(self, single_statement=False):
        """Cursor of a transaction at READ COMMITTED: committed at the end, rolled back if an exception passes.

        :param bool single_statement: it has one, which begins and commits it, where settings last for the session
        :rtype: TransactionCursor
        :raise psycopg2.Error: where it is the database that failed, the connection is closed
        """
        try:
            self.open()
            with self._connection.cursor(cursor_factory=TransactionCursor) as cr:
                cr.set_up(self._note_sending, {} if self._session else _SETTINGS, single_statement)
                try:
                    yield cr
                except BaseException:
                    cr.roll_back()
                    raise
                cr.end()
        except psycopg2.Error as error:
            if is_trouble(error):
                self.close()
            raise
        finally:
            self._waiting_since = None

    def _note_sending(self):
        self._waiting_since = time.monotonic()

    def cut_if_silent(self, seconds):
        """Break the connection if a statement has been waiting for its answer for so long. For any thread."""
        since, line = self._waiting_since, self._line
        if since and line and time.monotonic() - since > seconds:
            line.cut()

    def open(self):
        if not self.is_open:
            self.close()
            _name, info = connection_info_for(self._db_name)
            if self._session:
                info = {**info, "options": _with_settings(info)}
            self._connection = psycopg2.connect(**KEEPALIVES, **info)
            self._connection.autocommit = True  # a transaction is begun with its first statement
            self._line = Line(self._connection)
            try:
                if self._on_open:
                    with self._connection.cursor() as cr:
                        self._on_open(cr)
            except BaseException:  # half prepared, it would be taken for ready
                self.close()
                raise

    def close(self):
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._line is not None:
            self._line.close()
            self._line = None

    def fileno(self):
        """For ``select``: readable when a notification may have come."""
        return self._connection.fileno()

    def notifications(self):
        """Take the notifications that have come.

        :raise psycopg2.Error: the connection broke
        """
        try:
            self._connection.poll()
        except psycopg2.Error:
            self.close()
            raise
        arrived, self._connection.notifies[:] = list(self._connection.notifies), []
        return arrived


def _with_settings(info):
    """What the server is told at the start of a session: what every connection of Odoo tells it, then our settings."""
    usual = psycopg2.extensions.parse_dsn(info.get("dsn", "")).get("options") or os.environ.get("PGOPTIONS")
    return " ".join(filter(None, [usual, *(f"-c {name}={value}" for name, value in _SETTINGS.items())]))


class TransactionCursor(psycopg2.extensions.cursor):
    """Cursor of one transaction, in as few round trips as may be: the first statement takes the ``BEGIN`` along."""

    def set_up(self, on_send, settings, single_statement):
        """Prepare for the first statement.

        :param on_send: called before each statement is sent
        :param dict settings: of the server, for this transaction
        :param bool single_statement: see :meth:`Connection.transaction`
        """
        self._on_send = on_send
        self._before = "" if single_statement else f"{queries.BEGIN_BOOKKEEPING}; {queries.set_local(settings)}"
        self._begun = False

    def execute(self, query, parameters=None):
        if isinstance(query, SQL):
            query, parameters = query.code, query.params
        self._on_send()
        before, self._before = self._before, ""
        self._begun = self._begun or bool(before)
        return super().execute(before + query, parameters)

    def end(self):
        """Commit, unless that was done before."""
        if self._begun:
            self.execute("COMMIT")

    def commit_then(self, query):
        """Commit and, in the same round trip, execute a statement after that."""
        self.execute(f"COMMIT; {query}")
        self._begun = False

    def roll_back(self):
        if self._begun and not self.connection.closed:
            with contextlib.suppress(psycopg2.Error):  # the connection broke, which is what the caller is told already
                self.execute("ROLLBACK")


class Backoff:
    """Waits that grow while something stays broken.

    :param float longest: seconds
    """

    def __init__(self, longest=LONGEST_WAIT_SECONDS):
        self._longest = longest
        self._wait = 0.0

    @property
    def broken(self):
        return self._wait > 0

    def next_wait(self):
        """Seconds to wait before the next try, with jitter."""
        self._wait = min(self._wait * 2 or FIRST_WAIT_SECONDS, self._longest)
        return self._wait * random.uniform(0.5, 1)

    def reset(self):
        self._wait = 0.0
