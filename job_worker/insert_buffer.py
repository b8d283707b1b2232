"""Jobs that a transaction stores one after the other travel to the server together.

A statement that inserts one row costs ten times as much as a row more in one that inserts many. So the first job is
inserted at once, and those that follow in a row, with no other statement in between, get ids out of a block and are
kept here. Whatever the transaction says to the server next, be it a query, a savepoint or its commit, goes behind them.
A rollback forgets them.

What goes through Odoo's cursor passes here, because the cursor beneath it is exchanged. While jobs are kept, the
methods of the connection by which a transaction could go on past it are watched as well. Not seen is a cursor of
psycopg2 that was opened on the connection before the first of the jobs.
"""

import re
from functools import partial

import psycopg2.extensions

from . import queries

MAX_ROWS = 256
MAX_PAYLOAD_CHARS = 2**20
_REGISTERED = "job_worker.insert_buffer"
_ROLLBACK = re.compile(r"\s*ROLLBACK\b", re.IGNORECASE)
# Methods of the connection, behind what is kept or in its place.
_SENDING = ("commit", "cursor")
_DROPPING = ("rollback", "reset")


def insert_soon(cr, job):
    """Insert a job, at the latest before the next statement of the transaction.

    :param cr: Odoo cursor
    :param dict job: as for :func:`.queries.insert_jobs`, without id, with neither identity key nor parents: there is
        nothing that the insert could refuse, but the user and the company
    :return: the id of the job
    """
    real = getattr(cr, "_cursor", cr)  # beneath a cursor of tests
    follows = (cr, job["user_id"], job["company_id"])
    buffer = real._obj
    if isinstance(buffer, BufferingCursor) and buffer.follows == follows:
        return buffer.keep(job)
    (job_id,) = queries.insert_jobs(cr, [job])
    if not _may_be_watched(real):
        return job_id
    if not isinstance(buffer, BufferingCursor):
        buffer = real._obj = real._cnx.cursor(cursor_factory=BufferingCursor)
        buffer.odoo_cursor = real
    for callbacks, function in ((cr.precommit, buffer.close_row), (cr.prerollback, buffer.forget)):
        if _REGISTERED not in callbacks.data:
            callbacks.data[_REGISTERED] = True
            callbacks.add(partial(_call_once, callbacks, function))
    buffer.follows = follows
    return job_id


def _may_be_watched(real):
    """Whether cursor and connection are as Odoo makes them. Where something else looks on, to trace statements for
    example, it is to see each of them.
    """
    plain = type(real._obj) in (psycopg2.extensions.cursor, BufferingCursor)
    return plain and not vars(real._cnx).keys() & {*_SENDING, *_DROPPING}


def _call_once(callbacks, function):
    del callbacks.data[_REGISTERED]
    function()


def _behind(name):
    """The method of psycopg2's cursor, to be called behind what is kept."""
    method = getattr(psycopg2.extensions.cursor, name)

    def send_first(self, *args, **kwargs):
        self.close_row()
        return method(self, *args, **kwargs)

    return send_first


class BufferingCursor(psycopg2.extensions.cursor):
    """Cursor beneath Odoo's that sends what it keeps before any other statement.

    :ivar odoo_cursor: the one that it is beneath: it counts and logs what is sent
    :ivar follows: the Odoo cursor that stored a job and has not said anything else since, with the user and the company
        of the job
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.odoo_cursor = None
        self.forget()

    def forget(self):
        """Drop what is kept: the transaction is rolled back."""
        self.follows = None
        self._kept = []
        self._payload_chars = 0
        self._ids = []
        self._block = 1
        for name in (*_SENDING, *_DROPPING):
            vars(self.connection).pop(name, None)

    def keep(self, job):
        """Keep a job until the next statement, or until many have come together.

        :return: the id it is going to have
        """
        if not self._ids:
            follows, block = self.follows, min(2 * self._block, MAX_ROWS)
            ids = queries.reserve_job_ids(self.odoo_cursor, block)  # ends the row, as any statement does
            self.follows, self._block, self._ids = follows, block, ids[::-1]
            self._watch_connection()
        job["id"] = self._ids.pop()
        self._kept.append(job)
        self._payload_chars += len(job["payload"])
        if not self._ids or self._payload_chars > MAX_PAYLOAD_CHARS:
            follows, block = self.follows, self._block
            self.close_row()
            self.follows, self._block = follows, block
        return job["id"]

    def _watch_connection(self):
        connection = self.connection
        for names, first in ((_SENDING, self.close_row), (_DROPPING, self.forget)):
            for name in names:
                setattr(connection, name, partial(_call_after, first, getattr(connection, name)))

    def close_row(self):
        """Send what is kept and end the row. Ids that are left are not used: what comes in between gets greater ones,
        and of equal jobs the one with the smaller id runs first.
        """
        kept = self._kept
        self.forget()
        if kept:
            queries.insert_jobs(self.odoo_cursor, kept)

    def execute(self, query, *args, **kwargs):
        if isinstance(query, str) and _ROLLBACK.match(query):  # to a savepoint, which is older than what is kept
            self.forget()
        else:
            self.close_row()
        return super().execute(query, *args, **kwargs)

    executemany = _behind("executemany")
    callproc = _behind("callproc")
    copy_expert = _behind("copy_expert")
    copy_from = _behind("copy_from")
    copy_to = _behind("copy_to")


def _call_after(first, method, *args, **kwargs):
    first()
    return method(*args, **kwargs)
