"""The cursor that jobs run on: open from job to job, each in a transaction of its own."""

import re
import time
from contextlib import contextmanager

import psycopg2
from odoo.sql_db import BaseCursor, Cursor, connection_info_for
from psycopg2 import errors
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from .. import queries
from .connection import KEEPALIVES, Line

# How long after its claim a job is taken to be as it was claimed. Jobs claimed ahead of short ones begin within it.
SURE_SECONDS = 0.05

# Statements that would commit past the fence.
_COMMIT = re.compile(r"\s*(?:COMMIT|END)\b", re.IGNORECASE)
# Statements that leave nothing in their session, as all do that the ORM sends; and what in them does, in lower case.
_LEAVING_NOTHING = re.compile(
    r"[\s(]*(?:SELECT|INSERT|UPDATE|DELETE|WITH|SAVEPOINT|RELEASE|ROLLBACK\s+TO|VALUES|MERGE|LOCK|COPY|NOTIFY|EXPLAIN)\b",
    re.IGNORECASE,
)
_LEAVING_WORDS = ("advisory_lock", "set_config", "into temp ", "into temporary ")


class AttemptLostError(Exception):
    """The job was recovered, cancelled or ended by somebody else: this attempt may not commit."""


class JobCursor(Cursor):
    """Odoo cursor of one job, on the connection of its slot.

    Taking a connection from Odoo's pool costs two round trips to the server, each ``BEGIN`` and ``COMMIT`` another.
    Here psycopg2 is in autocommit mode and the transactions are begun and ended by this class, so that the end of one
    job and the beginning of the next are a single round trip. A transaction is open whenever job code runs, whichever
    way that code gets to the connection. Settings that a job made with ``SET`` end with it. So does its cursor: what a
    job leaves behind, a thread or a generator, finds it closed and gets at nothing of the next job (:meth:`successor`).
    A session in which more than settings may be left is not used again.

    :ivar broke_after: of a connection that broke in the middle of the job: seconds since the last answer on it, and
        since its transaction began
    :ivar used_up: the job sent something else than what the ORM sends, and may have changed the session with it
    :param pool: pool of connections, see :class:`odoo.sql_db.ConnectionPool`
    :param str db_name: database
    :param bool prepare: keep the hot statement prepared in the session, which some poolers can't
    """

    def __init__(self, pool, db_name, prepare=True):
        _name, info = connection_info_for(db_name)
        super().__init__(pool, db_name, {**KEEPALIVES, **info})
        self._cnx.autocommit = True
        self.line = Line(self._cnx)
        self._owned = None
        self.used_up = False
        self.broke_after = None
        self._answered_at = self._begun_at = time.monotonic()
        self._finish = queries.FINISH
        if prepare:
            # each time: a connection that comes from the pool has been reset, which forgets what was prepared
            self._finish = queries.EXECUTE_FINISH
            try:
                self._send(queries.PREPARE_FINISH)
            except BaseException:
                self.discard()
                raise

    @property
    def broken(self):
        return bool(self._cnx.closed)

    def begin(self, claim):
        """Begin the transaction of a claimed job, with nothing left of the worker's own on this cursor.

        :raise AttemptLostError: the job waited for a thread, and is not to run any more
        """
        self.cache.clear()
        self.transaction = None
        # not the claim: this cursor is part of a cycle of references, which would keep the arguments until a collection
        self._owned = claim.id, claim.claim_seq
        try:
            if time.monotonic() - claim.claimed_at > SURE_SECONDS:
                self._look_again(claim)
            if self._is_idle():
                self._send(queries.BEGIN)
            elif time.monotonic() - self._begun_at > SURE_SECONDS:
                self._send(f"ROLLBACK; {queries.BEGIN}")  # the server may have ended it for idling
        finally:
            self.broke_after = None  # not in this job

    def _look_again(self, claim):
        """Ask whether the job is still to run; not in its transaction, which begins with its own first statement."""
        if not self._is_idle():
            self._send("ROLLBACK")
        with self._cnx.cursor() as raw:
            if not queries.is_as_claimed(raw, claim):
                raise AttemptLostError

    def successor(self):
        """Close this cursor, but not its connection, nor what is begun there.

        :return: a cursor for the next job on the same connection
        """
        successor = object.__new__(type(self))
        vars(successor).update(vars(self))
        BaseCursor.__init__(successor)
        successor._obj = self._cnx.cursor()
        self._closed = True
        self._obj.close()
        del self._obj
        self.cache.clear()
        return successor

    def finish(self, result, duration, begin_next):
        """End the job as done: its writes and its ``done`` in one commit.

        :param str result: JSON text or ``None``
        :param float duration: seconds
        :param bool begin_next: begin the transaction of the next job in the same round trip
        :raise AttemptLostError: the attempt does not own the job any more; nothing was committed
        """
        self.flush()
        job_id, claim_seq = self._owned
        parameters = {"id": job_id, "claim_seq": claim_seq, "result": result, "duration": duration}
        before, finish, after = queries.FORGET_SETTINGS, self._finish, f"; {queries.BEGIN}" if begin_next else ""
        if self.used_up:
            # Nothing that needs the fence can have been written by a transaction that only read, so its end may follow.
            begin_to_write = f"; COMMIT; {queries.BEGIN}" if self._only_read() else ""
            self._send(queries.FORGET_SETTINGS + begin_to_write)
            before, finish, after = queries.OWN_TABLES, queries.FINISH, f"; {queries.FORGET_SESSION}"
        try:
            self._send(f"{before}; {queries.PLAN_BY_INDEX}; {finish}; COMMIT{after}", parameters)
        except errors.DivisionByZero as error:
            raise AttemptLostError from error
        self._forget_transaction()

    @contextmanager
    def bookkeeping(self):
        """A transaction of the worker's, at READ COMMITTED, in place of whatever is open; committed at the end."""
        self._forget_transaction()
        self._send(f"ROLLBACK; {queries.FORGET_SESSION}; {queries.BEGIN_BOOKKEEPING}")
        yield self
        self._send("COMMIT")

    def close(self):
        """Refused to job code: the worker needs the cursor to end the job, and another job may get its connection.

        :raise RuntimeError: always; the worker has :meth:`discard`
        """
        raise RuntimeError("a job can't close its cursor")

    def discard(self):
        """Close the connection without waiting for an answer on it; what was registered for a rollback is called."""
        self._cnx.close()
        self.line.close()
        self.rollback()

    def run_postcommit(self):
        """Call what the job registered to follow its commit; what that leaves uncommitted is dropped."""
        if len(self.postcommit):
            if self._is_idle():
                self._send(queries.BEGIN)
            self.postcommit.run()
            self.rollback()

    def execute(self, query, params=None, log_exceptions=True):
        """As Odoo's, but it does not let SQL end the transaction.

        :raise RuntimeError: the statement is a ``COMMIT`` and was not sent; or it ended the transaction in another way,
            and what follows is in a new one
        """
        sql = query if isinstance(query, str) else getattr(query, "code", None) or self.mogrify(query).decode()
        if not _leaves_nothing(sql):
            if _COMMIT.match(sql):
                raise RuntimeError("a job can't commit in SQL: use env.cr.commit()")
            self.used_up = True
        try:
            return super().execute(query, params, log_exceptions)
        finally:
            self._note_answer()
            if self._is_idle():
                self._send(queries.BEGIN)
                raise RuntimeError("a job can't end its transaction in SQL: use env.cr.commit() or env.cr.rollback()")

    def commit(self):
        """For job code that commits by itself: it may, while its attempt owns the job.

        :raise AttemptLostError: it does not
        """
        self.flush()
        if not (self.used_up and self._only_read()):
            if self.used_up:
                self._send(queries.OWN_TABLES)
            job_id, claim_seq = self._owned
            if not queries.lock_attempt(self, claim_seq, job_id):
                raise AttemptLostError
        self._send(f"COMMIT; {queries.BEGIN}")
        self._forget_transaction()
        self.postcommit.run()

    def rollback(self):
        self.clear()
        self.postcommit.clear()
        self.prerollback.run()
        if not self.broken and not self._is_idle():
            # while it is being closed there is no other transaction to begin
            self._send("ROLLBACK" if "_obj" not in vars(self) else f"ROLLBACK; {queries.BEGIN}")
        self._now = None
        self.postrollback.run()

    def _only_read(self):
        """Whether the job made its transaction a read-only one, so that it has written nothing that needs a fence.

        :raise RuntimeError: it had written before
        """
        read_only, has_written = queries.is_read_only(self)
        if read_only and has_written:
            raise RuntimeError("a job can't SET TRANSACTION READ ONLY after it has written, or locked")
        return read_only

    def _forget_transaction(self):
        self.clear()
        self._now = None
        self.prerollback.clear()
        self.postrollback.clear()

    def _is_idle(self):
        return self._cnx.get_transaction_status() == TRANSACTION_STATUS_IDLE

    def _send(self, sql, parameters=None):
        if self._closed:
            raise psycopg2.InterfaceError("Cursor already closed")
        try:
            with self._cnx.cursor() as raw:
                raw.execute(sql, parameters)
        finally:
            self._note_answer()
        if sql.endswith(queries.BEGIN):
            self._begun_at = self._answered_at

    def _note_answer(self):
        now = time.monotonic()
        if not self.broken:
            self._answered_at = now
        elif not self.broke_after:
            self.broke_after = now - self._answered_at, now - self._begun_at


def _leaves_nothing(sql):
    """Whether a session is the same after a statement, for what can be told from its text."""
    if not _LEAVING_NOTHING.match(sql) or sql.partition(";")[2].strip():
        return False
    lowered = sql.lower()
    return not any(word in lowered for word in _LEAVING_WORDS)
