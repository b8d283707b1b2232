"""How attempts end that did not succeed: the same for workers, timeouts, dead workers and ``run_now()``."""

import logging
import traceback
from datetime import timedelta

import psycopg2
from odoo.exceptions import ConcurrencyError
from odoo.service.model import PG_CONCURRENCY_EXCEPTIONS_TO_RETRY

from . import queries
from .database_errors import is_passing
from .error_origin import class_name, error_origin, traceback_text
from .exception import CallerGoneError, RetryableJobError
from .lifecycle import MAX_BACKOFF_SECONDS, NextTry, after_failure, move

_logger = logging.getLogger(__name__)

CONFLICTS = (*PG_CONCURRENCY_EXCEPTIONS_TO_RETRY, ConcurrencyError)
"""What comes of two transactions that met, which Odoo tries again too: not the job's failure."""
MAX_ERROR_CHARACTERS = 100_000
CANCELLED_TEXT = "Cancelled while it was running."
LONGEST_DELAY_SECONDS = 100 * 365 * 86400


def error_text(error):
    """The traceback of an exception as PostgreSQL can store it; of a very long one, the end."""
    text = error
    if isinstance(error, BaseException):
        text = traceback_text(error) or (
            f"{''.join(traceback.format_tb(error.__traceback__))}{class_name(type(error))}: what it says can't be told"
        )
    text = text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_ERROR_CHARACTERS else "…" + text[-MAX_ERROR_CHARACTERS:]


def fail(cr, job, error, *, before=None, outcome="failed", duration=0.0, max_backoff=MAX_BACKOFF_SECONDS):
    """End an attempt as failed: the job is tried again later, or has failed for good.

    :param job: has ``id``, ``claim_seq``, ``attempts`` and ``max_retries``
    :param error: an exception, or a text
    :param str before: text that goes before that of the error in the job's ``exc_info``; the attempt has its own only
    :param str outcome: of the attempt, see ``queue.job.attempt``
    :param float duration: of the attempt, in seconds
    :return: what follows, also if the job was asked to stop meanwhile, or ``None`` if the attempt did not own the job
        any more
    :rtype: ~.lifecycle.NextTry or None
    """
    wish = _wish(error)
    if wish.get("ignore_retry"):
        wish["uncounted"] = queries.uncounted_in_a_row(cr, job.id)
    following = after_failure(job.attempts, job.max_retries, max_backoff=max_backoff, **wish)
    text = error_text(error)
    error_class, error_place = error_origin(error)
    _record(cr, job, outcome, following.attempts > job.attempts, duration, text)
    moved, stopped = _move_or_stop(
        cr,
        following.transition,
        [job],
        duration,
        attempts=following.attempts,
        delay=following.delay,
        exc_info=error_text("\n".join(filter(None, [before, text]))),
        worker_died=outcome == "died",
        error_class=error_class,
        error_place=error_place,
    )
    return NextTry("stop", job.attempts, 0) if stopped else following if moved else None


def _record(cr, job, outcome, counted, duration, text, repeated=False):
    """Keep an attempt in the history. Where that is refused (ids used up, a column or a trigger of another addon), the
    job ends without it.

    :return: as :func:`.queries.record_attempt`
    """
    try:
        with queries.savepoint(cr):
            return queries.record_attempt(
                cr, job.id, job.claim_seq, outcome, counted, duration, text, repeated=repeated
            )
    except psycopg2.Error as error:
        if is_passing(error):
            raise
        _logger.error("an attempt can't be kept in the history: job=%s outcome=%s", job.id, outcome, exc_info=error)
        return None


def _move_or_stop(cr, transition, jobs, duration=0.0, **params):
    """End attempts by a transition, or by cancelling where the job was asked to stop.

    :return: ``(ids of the jobs that moved, ids of those that were cancelled)``
    """
    owned = {job.id: job.claim_seq for job in jobs}
    moved = move(cr, transition, owned, claim_seqs=list(owned.values()), duration=duration, **params)
    for job_id in moved:
        del owned[job_id]
    stopped = _cancel(cr, owned, duration) if owned else []
    return moved, stopped


def _cancel(cr, owned, duration):
    return move(cr, "stop", owned, claim_seqs=list(owned.values()), duration=duration, exc_info=CANCELLED_TEXT)


def _wish(error):
    """When the job asked to be tried again, and whether that counts; or that another try makes no sense."""
    if isinstance(error, CallerGoneError):
        return {"final": True}
    try:
        if isinstance(error, RetryableJobError):
            return {"seconds": _as_delay(error.seconds), "ignore_retry": bool(error.ignore_retry)}
    except Exception:
        _logger.warning("what a job asks for with %s can't be told", class_name(type(error)), exc_info=True)
    return {}


def _as_delay(seconds):
    """What job code asked for, as seconds; ``None`` for what is none, because the job can't be told any more."""
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds != seconds:  # NaN
        return None
    return min(seconds, LONGEST_DELAY_SECONDS)


def stop(cr, job, duration=0.0):
    """End an attempt that was asked to stop: the job is cancelled.

    :return: whether the attempt still owned the job
    """
    _record(cr, job, "cancelled", False, duration, CANCELLED_TEXT)
    return bool(_cancel(cr, {job.id: job.claim_seq}, duration))


def give_back(cr, job, duration):
    """End an attempt at the worker's shutdown: the job can be claimed again at once, nothing is counted.

    :param job: has ``id`` and ``claim_seq``
    :param float duration: of the attempt, in seconds
    :return: whether the attempt still owned the job
    """
    text = "The worker was shut down."
    _record(cr, job, "given_back", False, duration, text)
    return bool(give_back_unbegun(cr, [job]))


def give_back_unbegun(cr, jobs):
    """Let jobs be claimed again that were claimed and not begun; those that were asked to stop are cancelled.

    :param jobs: each has ``id`` and ``claim_seq``
    :return: ids of those that were still owned
    """
    moved, stopped = _move_or_stop(cr, "give_back", jobs) if jobs else ([], [])
    return moved + stopped


def put_off(cr, job, delay):
    """Let a job that has not begun be claimed again after ``delay`` seconds, or cancel it if it was asked to stop."""
    _move_or_stop(cr, "put_off", [job], delay=delay)


def postpone(cr, job, reason, delay, *, longest=None, duration=0.0, database_failure=False):
    """End an attempt that is not the job's fault: try again after ``delay`` seconds, nothing is counted.

    :param str reason: kept with the attempt and in the job's ``exc_info``
    :param float longest: this may come again and again: each time for the same reason the delay doubles, up to this,
        and the history has one row for all of them
    :param bool database_failure: the database went away; these are counted apart, to be bounded
    :return: whether the attempt still owned the job
    """
    text = error_text(reason)
    times = _record(cr, job, "given_back", False, duration, text, repeated=longest is not None)
    if longest is not None:
        delay = min(delay * 2 ** min((times or 1) - 1, 30), longest)
    moved, stopped = _move_or_stop(
        cr, "postpone", [job], duration, delay=delay, exc_info=text, database_failure=int(database_failure)
    )
    return bool(moved or stopped)
