"""One attempt at a job: what was claimed, and how a thread in the middle of it can be stopped."""

import contextlib
import ctypes
import sys
import threading
import time
from dataclasses import dataclass, field

import psycopg2

TIMEOUT = "timeout"
CANCEL = "cancel"
SHUTDOWN = "shutdown"
LOST = "lost"

# Modules that take locks in Python code which other threads wait for, be it only to log a line. An exception that hits
# them between taking a lock and the ``try`` that releases it leaves it taken for ever.
_TAKING_LOCKS = {
    "importlib._bootstrap",
    "logging",
    "logging.handlers",
    "odoo.modules.registry",
    "odoo.orm.registry",
    "odoo.sql_db",
    "odoo.tools.func",
    "odoo.tools.lru",
    "queue",
    "threading",
}


class Interrupted(BaseException):
    """Raised inside a job's thread to stop it; no ``except Exception`` of the job holds it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed job, as :func:`~..queries.claim` returns it.

    :param payload: ``None`` where it is too big to come with the claim
    :param age: seconds from its creation to the claim
    :param has_children: whether jobs waited for it at the time of the claim
    :param throttled: whether the channel counts starts
    :param died_ago: seconds since its worker died, if that is how its last attempt ended
    :param claimed_at: :func:`time.monotonic` of the claim
    """

    id: int
    claim_seq: int
    uuid: str
    payload: dict | None
    user_id: int
    company_id: int
    channel: str
    priority: int
    attempts: int
    max_retries: int
    timeout: int
    database_failures: int
    age: float
    has_children: bool
    died_ago: float | None
    throttled: bool = False
    claimed_at: float = field(default_factory=time.monotonic)

    @property
    def runs_alone(self):
        """Whether nothing is to run beside it, because it may be what its last worker died of."""
        return self.died_ago is not None


class Attempt:
    """A claim while a thread works on it.

    The thread is in the job's code between :meth:`enter` and :meth:`leave`: only there can it be interrupted. Either
    the thread ends the attempt (:meth:`settle`) or the one that gave up on the thread does (:meth:`abandon`). Once
    :meth:`committed`, the job is done, and giving up on the thread is all there is left to do about it.
    """

    def __init__(self, claim):
        self.claim = claim
        self.payload = claim.payload
        self.has_children = claim.has_children
        self.began = time.monotonic()
        self.reason = None
        self.interrupted_at = None
        self.abandoned = False
        self.committed_at = None
        self.backend_pid = None
        self.registry = None
        self.modules = None
        self._connection = None
        self._line = None
        self._thread_id = threading.get_ident()
        self._lock = threading.Lock()
        self._interruptible = False
        self._settled = False

    @property
    def duration(self):
        """Seconds since it began."""
        return time.monotonic() - self.began

    @property
    def overdue(self):
        return self._interruptible and 0 < self.claim.timeout <= self.duration

    def enter(self, connection, line):
        """Begin the part that can be interrupted.

        :param connection: the one the job's queries run on
        :param line: its :class:`~.connection.Line`
        :raise Interrupted: it was asked to stop before
        """
        with self._lock:
            if self._connection is None:
                self.began = time.monotonic()  # waiting for a registry or a connection is not the job's time
            self._connection = connection
            self._line = line
            self.backend_pid = connection.get_backend_pid()
            if self.reason:
                raise Interrupted(self.reason)
            self._interruptible = True

    def leave(self):
        """End the part that can be interrupted; an interrupt on its way is called off."""
        while True:
            try:
                with self._lock:
                    self._interruptible = False
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), None)
                return
            except Interrupted:
                continue

    def interrupt(self, reason):
        """Stop the job: cancel its query, raise :class:`Interrupted` in its thread. May be called again.

        Where the thread may be about to take a lock, only the query is cancelled; another call may find it elsewhere.

        :param str reason: the first one given counts
        :return: ``False`` if it is ending by itself
        """
        with self._lock:
            if self._settled:
                if self.committed_at and reason == SHUTDOWN:  # what follows its commit has a little time left
                    self.interrupted_at = self.interrupted_at or time.monotonic()
                return False
            self.reason = self.reason or reason
            self.interrupted_at = self.interrupted_at or time.monotonic()
            if not self._interruptible:
                return True
            thread_id, exception = ctypes.c_ulong(self._thread_id), ctypes.py_object(Interrupted)
            # The thread raises it where it is now, unless it gets its turn in just the few instructions between the
            # look and the call: nothing in Python closes that gap, and locks that the job's own code takes with
            # acquire() are not known here.
            if not _takes_locks(self._thread_id):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, exception)
            # In a thread of its own: with the server out of reach it may block. Should it come late it hits nobody
            # else, because the connection of an interrupted attempt is closed.
            threading.Thread(target=_cancel_query, args=(self._connection,), daemon=True).start()
            return True

    def cut(self, backend_pid):
        """Let the thread find its connection broken, if it is the one to this session, which is gone."""
        with self._lock:
            if self.backend_pid == backend_pid:
                self._line.cut()

    def settle(self):
        """End what may be interrupted or abandoned, to write how the attempt ends.

        :return: ``False`` if it was abandoned: its thread must not write anything any more
        """
        with self._lock:
            self._settled = True
            return not self.abandoned

    def resume(self):
        """Take :meth:`settle` back, to try once more.

        :return: ``False`` if it was abandoned
        """
        with self._lock:
            self._settled = False
            return not self.abandoned

    def committed(self):
        """Note that the job's transaction is committed: nothing is left that an interrupt could stop."""
        with self._lock:
            self.committed_at = time.monotonic()
            self.interrupted_at = None

    def abandon(self):
        """Take the right to end the attempt away from its thread.

        :return: ``False`` if the thread is ending it already, and has not got beyond its commit
        """
        with self._lock:
            self.abandoned = not self._settled or self.committed_at is not None
            return self.abandoned


def _takes_locks(thread_id):
    frame = sys._current_frames().get(thread_id)
    return frame is not None and frame.f_globals.get("__name__") in _TAKING_LOCKS


def _cancel_query(connection):
    with contextlib.suppress(psycopg2.Error):  # no query, or no connection, to cancel
        connection.cancel()
