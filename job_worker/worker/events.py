"""Every log line of the worker: one function for each event."""

import logging
import threading

from ..error_origin import traceback_text
from .attempt import SHUTDOWN

_logger = logging.getLogger("odoo.addons.job_worker.worker")


def worker_started(worker, database, slots):
    _logger.info("worker started: worker=%s database=%s slots=%s", worker, database, slots)


def worker_stopping(worker, running):
    _logger.info("worker stopping: worker=%s running=%s", worker, running)


def worker_stopped(worker):
    _logger.info("worker stopped: worker=%s", worker)


def worker_buried(worker):
    _logger.warning(
        "worker was taken for dead, its jobs were recovered; it starts again under a new name: worker=%s", worker
    )


def claiming_paused(worker, database, reason):
    _logger.info("claiming paused: worker=%s database=%s reason=%s", worker, database, reason)


def claiming_resumed(worker):
    _logger.info("claiming resumed: worker=%s", worker)


def database_held(database, reason):
    _logger.warning("database left alone: database=%s reason=%s", database, reason)


def files_elsewhere(database, folder):
    _logger.warning(
        "attachments are not where this worker looks for them, and nobody will find those that its jobs write: give it"
        " the data_dir of the web server: database=%s folder=%s", database, folder,
    )  # fmt: skip


def no_function(error):
    _logger.warning("claims are slower, because their function can't be created: error=%s", str(error).strip())


def database_lost(worker, where, error):
    _logger.warning(
        "database lost, trying to reconnect: worker=%s where=%s error=%s", worker, where, str(error).strip()
    )


def database_back(worker):
    _logger.info("database back: worker=%s", worker)


def connections_scarce(database, error):
    _logger.warning(
        "the server refuses connections: this process keeps none that it does not need, and its workers take turns;"
        " each database takes 2 connections and 1 for each job at once, in each process: database=%s error=%s",
        database,
        error_line(error),
    )


def worker_in_trouble(worker, where, error):
    _logger.error("worker in trouble: worker=%s where=%s error=%s", worker, where, error_line(error), exc_info=error)


def worker_out_of_trouble(worker, where):
    _logger.info("worker out of trouble: worker=%s where=%s", worker, where)


def registry_reloaded(database):
    _logger.info("registry changed, reloaded: database=%s", database)


def job_done(claim, duration):
    _logger.debug("job done: job=%s uuid=%s channel=%s duration=%.3f", claim.id, claim.uuid, claim.channel, duration)


_FOLLOWING = {"fail": "failed", "retry": "to be retried", "stop": "failed, and was to be cancelled"}


def job_failed(claim, following, error):
    """``following``: the :class:`~..lifecycle.NextTry`."""
    final = following.transition == "fail"
    _logger.log(
        logging.ERROR if final else logging.WARNING,
        "job %s: job=%s uuid=%s attempt=%s next_try=%ss error=%s",
        _FOLLOWING[following.transition],
        claim.id,
        claim.uuid,
        following.attempts,
        round(following.delay, 1),
        error_line(error),
        exc_info=error if final and isinstance(error, BaseException) and traceback_text(error) else None,
    )


def job_cancelled(claim):
    _logger.info("job cancelled while running: job=%s uuid=%s", claim.id, claim.uuid)


def job_given_back(claim, reason):
    _logger.info("job given back: job=%s uuid=%s reason=%s", claim.id, claim.uuid, reason)


_models_missing = set()


def model_missing(claim, error):
    """Told once for each model of a database, however many jobs wait for it."""
    line = error_line(error)
    missing = getattr(threading.current_thread(), "dbname", None), line
    if missing not in _models_missing:
        _models_missing.add(missing)
        _logger.warning("jobs wait for a model: first=%s uuid=%s error=%s", claim.id, claim.uuid, line)


def jobs_given_back(claims, reason):
    _logger.info(
        "jobs given back: count=%s jobs=%s reason=%s", len(claims), [claim.id for claim in claims[:20]], reason
    )


def job_to_run_alone(claim):
    _logger.info(
        "job whose worker died runs with nothing beside it in the process: job=%s uuid=%s", claim.id, claim.uuid
    )


def attempt_lost(claim):
    _logger.warning("attempt does not own its job any more, its work was dropped: job=%s uuid=%s", claim.id, claim.uuid)


def conflict(claim, tries, error):
    _logger.info(
        "job met a concurrent update, trying again: job=%s uuid=%s tries=%s error=%s",
        claim.id, claim.uuid, tries, error_line(error),
    )  # fmt: skip


def attempt_interrupted(claim, reason):
    _logger.info("interrupting job: job=%s uuid=%s reason=%s", claim.id, claim.uuid, reason)


def attempt_abandoned(claim, reason):
    # Whoever stops the worker now asks for this.
    _logger.log(
        logging.INFO if reason == SHUTDOWN else logging.ERROR,
        "job can't be interrupted, its thread is abandoned: job=%s uuid=%s reason=%s",
        claim.id,
        claim.uuid,
        reason,
    )


def jobs_recovered(jobs):
    _logger.warning("jobs of dead workers recovered: count=%s jobs=%s", len(jobs), jobs[:20])


def after_end_failed(claim, error):
    _logger.error("job has ended, but what followed failed: job=%s uuid=%s", claim.id, claim.uuid, exc_info=error)


def end_not_written(claim, error):
    _logger.error(
        "the end of an attempt can't be written, so its job stays started: job=%s error=%s",
        claim.id, error_line(error), exc_info=error,
    )  # fmt: skip


def unexpected(where, error):
    _logger.error("unexpected error in the worker: where=%s", where, exc_info=error)


def process_started(pid, number):
    _logger.info("worker process started: pid=%s number=%s", pid, number)


def process_not_started(error, again_in):
    _logger.error("worker process can't be started: error=%s again_in=%.1fs", error_line(error), again_in)


def process_ended(pid, how, restart_in):
    _logger.warning("worker process ended: pid=%s how=%s restart_in=%.1fs", pid, how, restart_in)


def process_recycled(reason):
    _logger.info("worker process recycles itself: reason=%s", reason)


def process_state_restored(found, restored):
    _logger.warning(
        "jobs changed the working directory or the locale of the process, brought back: found=%s restored=%s",
        found,
        restored,
    )


def limit_too_low(memory, limit):
    _logger.warning(
        "limit_memory_soft is below what a worker needs without any job: limit=%s MiB memory=%s MiB",
        limit // 2**20,
        memory // 2**20,
    )


def process_killed(pid, reason):
    _logger.error("worker process killed: pid=%s reason=%s", pid, reason)


def supervisor_reexecuted():
    _logger.info("code of modules may have changed: the worker starts anew")


def database_left_out(problem):
    _logger.warning("database left out: %s", problem)


def filter_ignored(pattern):
    _logger.warning(
        "dbfilter chooses by the host of a request, so every database with the addon is served: dbfilter=%s",
        pattern,
    )


def databases_not_found(reason):
    _logger.error("looking for databases to serve, and found none or not all: reason=%s", reason)


def databases_found():
    _logger.info("databases to serve can be found again")


def database_added(database):
    _logger.info("serving database: database=%s", database)


def database_dropped(database):
    _logger.info("no longer serving database: database=%s", database)


def error_line(error):
    """Class and message of an exception, or the last line of a text, on one line."""
    try:
        text = (
            f"{type(error).__name__}: {error}"
            if isinstance(error, BaseException)
            else str(error).strip().rpartition("\n")[2]
        )
    except BaseException:  # of a message that can't be told: it is code of the job's
        text = type(error).__name__
    return " ".join(text.split())[:500]
