"""Run one claimed job: the only place where code of jobs is called by a worker.

Two transactions at least: the job's own, whose commit carries the job's writes and its ``done``, and, if jobs wait for
it or if it did not succeed, a second one for what follows.
"""

import contextlib
import contextvars
import ctypes
import random
import threading
import time
from contextlib import contextmanager
from functools import partial

import psycopg2
from odoo.modules.registry import Registry
from odoo.sql_db import ConnectionPool
from psycopg2 import errors

from .. import attempts, graph, queries
from ..call import ModelNotFoundError, find_caller_gone, perform
from ..database_errors import is_trouble
from ..exception import SessionEndedJobError, TimeoutJobError
from ..models.job_serialization import dump_result
from . import events
from .attempt import CANCEL, LOST, SHUTDOWN, TIMEOUT, Interrupted
from .job_cursor import AttemptLostError, JobCursor
from .process_state import ProcessState

MAX_CONFLICTS = 30
FIRST_CONFLICT_WAIT_SECONDS = 0.02
LONGEST_CONFLICT_WAIT_SECONDS = 1.0
REGISTRY_WAIT_SECONDS = 5.0
LONGEST_REGISTRY_WAIT_SECONDS = 300.0
REGISTRY_PATIENCE_SECONDS = 3600
MAX_DATABASE_FAILURES = 10
DATABASE_FAILURE_WAIT_SECONDS = 2.0
LATE_CHILDREN_SECONDS = 0.2
START_AFTER_CLAIM_SECONDS = 0.05
SHORTEST_SESSION_LIMIT_SECONDS = 0.5

_PROCESS_STATE = ProcessState()

# Of glibc, which keeps what threads have freed for them.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


class _SessionLostError(Exception):
    """The job's connection broke, or there was none to be had."""


class Executor:
    """Runs attempts on the calling thread.

    :param str db_name: database
    :param int slots: threads that run attempts
    :param float max_backoff_seconds: longest delay between retries
    :param unwritten: takes the ends that can't be written at once: :class:`~.unwritten.UnwrittenEnds`
    :param on_lost: called when it is unknown how an attempt ended: jobs may get no connections any more, see
        :meth:`probe`
    :param has_next: tells whether another job waits for a thread already
    :param modules: tells what stands for the modules that are loaded, see :attr:`~.gate.Gate.modules`
    :param bool prepare: see :class:`~.job_cursor.JobCursor`
    """

    def __init__(self, db_name, slots, max_backoff_seconds, unwritten, on_lost, has_next, modules, prepare=True):
        self._db_name = db_name
        self._max_backoff = max_backoff_seconds
        self._unwritten = unwritten
        self._on_lost = on_lost
        self._has_next = has_next
        self._modules = modules
        self._prepare = prepare
        # room for threads that were abandoned and not replaced by the system yet
        self._pool = ConnectionPool(2 * slots)
        self._slot = threading.local()

    def run(self, attempt):
        """Bring an attempt to its end, whatever that is. Raises nothing."""
        threading.current_thread().dbname = self._db_name
        try:
            error = self._try(attempt)
            for tries in range(1, MAX_CONFLICTS + 1):
                if not isinstance(error, attempts.CONFLICTS) or attempt.reason:
                    break
                error = self._try_again(attempt, tries, error)
            if error is not None and attempt.settle():
                self._end(attempt, error)
            del error  # its traceback leads to this frame: it would keep itself, with all that the job's frames hold
        except BaseException as error:
            self._give_up(attempt.claim, error)

    def probe(self):
        """See whether jobs get connections.

        :raise Exception: what they get instead
        """
        _discard(JobCursor(self._pool, self._db_name, self._prepare))

    def release(self):
        """Close the connection of the calling thread, which has nothing to do, and give back memory that is free."""
        cr, self._slot.cr = getattr(self._slot, "cr", None), None
        if cr is not None:
            _discard(cr)
            _trim_memory()

    def _cursor(self):
        """The calling thread's cursor."""
        cr = getattr(self._slot, "cr", None)
        if cr is None or cr.closed:
            cr = self._slot.cr = JobCursor(self._pool, self._db_name, self._prepare)
        return cr

    def _renew_cursor(self, cr):
        """Close the cursor of a job that ended to whoever still holds it."""
        if cr.used_up:
            _discard(cr)
        elif not cr.closed:
            self._slot.cr = cr.successor()

    def _try(self, attempt):
        """The job's own transaction, in a context of its own: no context variable of one try is there for another.

        :return: ``None`` if the job is done, else what went wrong
        """
        with _PROCESS_STATE:
            return contextvars.Context().run(self._run_to_commit, attempt)

    def _run_to_commit(self, attempt):
        """The job's own transaction, from its beginning to its commit and what follows that."""
        claim = attempt.claim
        cr = None
        try:
            attempt.modules = self._modules()
            attempt.registry = Registry(self._db_name)
            cr = self._cursor()
            cr.begin(claim)
            _await_start(attempt)
            result = self._call(attempt, cr)
            if not attempt.settle():
                raise AttemptLostError
            cr.finish(result, attempt.duration, begin_next=self._has_next() and not attempt.has_children)
            attempt.committed()
        except BaseException as error:
            lost = cr is None or cr.broken or (is_trouble(error) and not _is_the_jobs(error, cr))
            if lost or attempt.reason or cr.used_up or isinstance(error, errors.InvalidSqlStatementName):
                _discard(cr)  # of an interrupt, a cancel may still be on its way to the connection
            else:
                _roll_back(cr)
                self._renew_cursor(cr)
            if attempt.registry is not None:
                attempt.registry.reset_changes()
            if cr is not None and cr.broke_after and (setting := self._limit_reached(*cr.broke_after)):
                return _session_ended(setting, error)
            return _SessionLostError(error) if lost else error
        events.job_done(claim, attempt.duration)
        self._after_done(attempt, cr)
        return None

    def _limit_reached(self, idle, lasted):
        """By which of its settings the server may have ended a session. It does not say so itself: a client that sends
        nothing at the time does not get to know why.

        :param float idle: seconds that the session was idle
        :param float lasted: seconds that its transaction lasted
        :return: name of the setting, ``None`` if it was something else
        """
        if lasted < SHORTEST_SESSION_LIMIT_SECONDS:
            return None
        try:
            with self._transaction() as cr:
                limits = queries.session_limits(cr)
        except Exception:  # it was more than that session
            return None
        spent = {"idle_in_transaction_session_timeout": idle, "transaction_timeout": lasted}
        return next((name for name, seconds in spent.items() if 0 < limits.get(name, 0) <= seconds), None)

    def _call(self, attempt, cr):
        if attempt.payload is None:
            attempt.payload = queries.payload_of(cr, attempt.claim.id)
        try:
            try:
                attempt.enter(cr._cnx, cr.line)
                value = perform(cr, attempt.claim.uuid, attempt.claim.user_id, attempt.payload)
                cr.flush()
                result = dump_result(value)
            finally:
                attempt.leave()
        except Interrupted:
            attempt.leave()  # the interrupt may have hit the first call of it before it did anything
            raise
        if attempt.reason:  # the job held the interrupt back, or it came too late
            raise Interrupted
        return result

    def _after_done(self, attempt, cr):
        """What follows the commit; it can't undo the job, and the workers' sweep makes up for it.

        Jobs that were told to wait for this one after it was claimed are looked for only if the worker has heard of
        some, or there was time for it.
        """
        claim = attempt.claim
        try:
            cr.run_postcommit()
        except BaseException as error:
            events.after_end_failed(claim, error)
            _discard(cr)
        self._renew_cursor(cr)
        try:
            attempt.registry.signal_changes()
            if attempt.has_children or time.monotonic() - claim.claimed_at > LATE_CHILDREN_SECONDS:
                self._settle_children(claim)
        except Exception as error:
            events.after_end_failed(claim, error)

    def _settle_children(self, claim):
        with self._transaction() as cr:
            graph.settle_children(cr, [claim.id], wait=False)

    def _try_again(self, attempt, tries, error):
        """After a conflict with another transaction: once more, if the job is still ours."""
        claim = attempt.claim
        with self._transaction() as cr:
            states = queries.attempt_states(cr, {claim.id: claim.claim_seq})
            gone = find_caller_gone(cr, claim.user_id, attempt.payload)  # deleting it changes the job's row
        if gone:
            return gone
        if not attempt.resume() or claim.id not in states:
            return AttemptLostError()
        if states[claim.id]:
            attempt.interrupt(CANCEL)
            return error
        events.conflict(claim, tries, error)
        longest = min(FIRST_CONFLICT_WAIT_SECONDS * 2**tries, LONGEST_CONFLICT_WAIT_SECONDS)
        time.sleep(random.uniform(0, longest))
        return self._try(attempt)

    def _end(self, attempt, error):
        """Write how an attempt ended that did not succeed."""
        claim = attempt.claim
        if attempt.reason == LOST:
            events.attempt_lost(claim)
            return
        if isinstance(error, _SessionLostError) and not attempt.reason:
            self._give_up(claim, error.args[0])
            return
        duration = attempt.duration
        write = partial(write_end, attempt=attempt, error=error, duration=duration, max_backoff=self._max_backoff)
        try:
            with self._transaction() as cr:
                ended = write(cr)
        except Exception:  # told if it fails again
            self._unwritten.add(claim, write)
            self._on_lost()
            return
        if ended:
            try:
                self._settle_children(claim)
            except Exception as settle_error:
                events.after_end_failed(claim, settle_error)

    def _give_up(self, claim, error):
        """Let the job go back whose attempt ended in a way that is not known."""
        if not is_trouble(error):
            events.unexpected("executor", error)
        self._unwritten.add(claim, partial(write_lost, claim=claim, error=error, max_backoff=self._max_backoff))
        self._on_lost()

    @contextmanager
    def _transaction(self):
        """Cursor of a transaction of the worker's, at READ COMMITTED, committed at the end."""
        cr = self._cursor()
        try:
            with cr.bookkeeping():
                yield cr
        except BaseException:
            _discard(cr)
            raise


def write_end(cr, attempt, error, duration, max_backoff):
    """Write how an attempt ended that did not succeed.

    :param cr: cursor at READ COMMITTED
    :param error: what the attempt raised, unless ``attempt.reason`` tells more
    :param float duration: of the attempt, in seconds
    :return: whether the job has ended, so that the jobs after it are to be settled
    """
    claim, reason, ended = attempt.claim, attempt.reason, False
    if isinstance(error, AttemptLostError) and _was_to_stop(cr, attempt):
        reason = CANCEL
    if reason == CANCEL:
        if owned := attempts.stop(cr, claim, duration):
            events.job_cancelled(claim)
            ended = True
    elif reason == SHUTDOWN:
        if owned := attempts.give_back(cr, claim, duration):
            events.job_given_back(claim, "shutdown")
    elif reason != TIMEOUT and _registry_is_behind(cr, attempt, error):
        if owned := attempts.postpone(
            cr, claim, error, REGISTRY_WAIT_SECONDS, longest=LONGEST_REGISTRY_WAIT_SECONDS, duration=duration
        ):
            if isinstance(error, ModelNotFoundError):
                events.model_missing(claim, error)
            else:
                events.job_given_back(claim, f"modules are changing: {events.error_line(error)}")
    else:
        outcome = "failed"
        if reason == TIMEOUT:
            error, outcome = _timeout_error(claim, duration, error), "timeout"
        elif gone := find_caller_gone(cr, claim.user_id, attempt.payload):
            gone.__cause__ = error
            error = gone
        owned = attempts.fail(cr, claim, error, outcome=outcome, duration=duration, max_backoff=max_backoff)
        if owned:
            events.job_failed(claim, owned, error)
            ended = owned.transition != "retry"
    if not owned:
        events.attempt_lost(claim)
    return ended


def _was_to_stop(cr, attempt):
    """Whether an attempt could not commit because its job was to be cancelled: by somebody, or by the job itself, which
    was rolled back with all else that its code did.
    """
    claim = attempt.claim
    cancelled = queries.attempt_states(cr, {claim.id: claim.claim_seq}).get(claim.id)
    if cancelled is None or cancelled:
        return bool(cancelled)
    return attempt.backend_pid is not None and not find_caller_gone(cr, claim.user_id, attempt.payload)


def write_lost(cr, claim, error, max_backoff):
    """Write the end of an attempt that is not known: uncounted, but not without end.

    :param error: what kept it from being known
    :return: whether the job has ended, so that the jobs after it are to be settled
    """
    if claim.database_failures + 1 >= MAX_DATABASE_FAILURES:
        following = attempts.fail(cr, claim, error, max_backoff=max_backoff)
        if following:
            events.job_failed(claim, following, error)
        return following is not None and following.transition != "retry"
    delay = DATABASE_FAILURE_WAIT_SECONDS * random.uniform(0.5, 1) * (claim.database_failures + 1)
    if attempts.postpone(cr, claim, error, delay, database_failure=True):
        why = "database lost" if is_trouble(error) else "unexpected error"
        events.job_given_back(claim, f"{why}: {events.error_line(error)}")
    return False


def _session_ended(setting, where):
    error = SessionEndedJobError(
        f"the server ended the job's database session, by its setting {setting}: env.cr.commit() before something that"
        " takes long, or another value for the worker's role, avoid that"
    )
    error.__cause__ = where
    return error


def _timeout_error(claim, duration, where):
    error = TimeoutJobError(f"the attempt took longer than {claim.timeout} s; it was stopped after {duration:.1f} s")
    error.__cause__ = where  # its traceback tells where the job was
    return error


def _registry_is_behind(cr, attempt, error):
    """Whether the failure may come from code and database being of different versions for the moment."""
    if attempt.claim.age > REGISTRY_PATIENCE_SECONDS:
        return False
    if isinstance(error, ModelNotFoundError) or queries.modules_differ(cr, attempt.modules):
        return True
    registry = attempt.registry
    return registry is not Registry(registry.db_name) or registry.registry_sequence != registry.get_sequences(cr)[0]


def _await_start(attempt):
    """Let jobs of throttled channels begin a fixed time after their claim, so that their starts are as far apart as
    their claims.
    """
    if attempt.claim.throttled:
        time.sleep(max(attempt.claim.claimed_at + START_AFTER_CLAIM_SECONDS - time.monotonic(), 0))


def _is_the_jobs(error, cr):
    """Whether it is not our database that is in trouble: the job made its session read-only, or it turned to another
    database, while ours still answers.
    """
    if isinstance(error, errors.ReadOnlySqlTransaction) and cr.used_up:
        return True
    if error.cursor is not None and error.cursor.connection is cr._cnx:
        return False
    try:
        queries.ping(cr)
    except errors.InFailedSqlTransaction:
        return True
    except psycopg2.Error:
        return False
    return True


def _roll_back(cr):
    try:
        cr.rollback()
    except Exception:
        _discard(cr)


def _trim_memory():
    if _malloc_trim:
        _malloc_trim(0)


def _discard(cr):
    if cr is not None:
        with contextlib.suppress(psycopg2.Error):
            cr.discard()
