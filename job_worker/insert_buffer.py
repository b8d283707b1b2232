"""Jobs that a transaction stores one after the other travel to the server together.

A statement that inserts one row costs ten times as much as a row more in one that inserts many. So the first job is
inserted at once, and those that follow in a row, with no other statement in between, get ids out of a block and are
kept here. Whatever the transaction says to the server next, be it a query, a savepoint or its commit, goes behind them:
nobody finds one missing. A rollback forgets them.
"""

import re
from functools import partial

import psycopg2.extensions

from . import queries

MAX_ROWS = 256
MAX_PAYLOAD_CHARS = 2**20
_REGISTERED = "job_worker.insert_buffer"
_ROLLBACK = re.compile(r"\s*ROLLBACK\b", re.IGNORECASE)


def insert_soon(cr, job):
    """Insert a job, at the latest before the next statement of the transaction.

    :param cr: Odoo cursor
    :param dict job: as for :func:`.queries.insert_jobs`, without id, with neither identity key nor parents: there is
        nothing that the insert could refuse, but the user and the company
    :return: the id of the job
    """
    real = getattr(cr, "_cursor", cr)  # beneath a cursor of tests
    if not isinstance(real._obj, BufferingCursor):
        real._obj = real._cnx.cursor(cursor_factory=BufferingCursor)
    buffer = real._obj
    follows = (cr, job["user_id"], job["company_id"])
    if buffer.follows == follows:
        return buffer.keep(job)
    (job_id,) = queries.insert_jobs(cr, [job])
    for callbacks, function in ((cr.precommit, buffer.close_row), (cr.prerollback, buffer.forget)):
        if _REGISTERED not in callbacks.data:
            callbacks.data[_REGISTERED] = True
            callbacks.add(partial(_call_once, callbacks, function))
    buffer.follows = follows
    return job_id


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

    :ivar follows: the Odoo cursor that stored a job and has not said anything else since, with the user and the company
        of the job
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.forget()

    def forget(self):
        """Drop what is kept: the transaction is rolled back."""
        self.follows = None
        self._kept = []
        self._payload_chars = 0
        self._ids = []
        self._block = 1

    def keep(self, job):
        """Keep a job until the next statement, or until many have come together.

        :return: the id it is going to have
        """
        if not self._ids:
            self._block = min(2 * self._block, MAX_ROWS)
            with self.connection.cursor() as cr:
                self._ids = queries.reserve_job_ids(cr, self._block)[::-1]
        job["id"] = self._ids.pop()
        self._kept.append(job)
        self._payload_chars += len(job["payload"])
        if not self._ids or self._payload_chars > MAX_PAYLOAD_CHARS:
            follows, block = self.follows, self._block
            self.close_row()
            self.follows, self._block = follows, block
        return job["id"]

    def close_row(self):
        """Send what is kept and end the row. Ids that are left are not used: what comes in between gets greater ones,
        and of equal jobs the one with the smaller id runs first.
        """
        kept = self._kept
        self.forget()
        if kept:
            with self.connection.cursor() as cr:
                queries.insert_jobs(cr, kept)

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
