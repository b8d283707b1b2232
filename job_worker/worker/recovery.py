"""Jobs of dead workers are taken back, jobs whose promotion got lost are promoted. Any living worker does it."""

from functools import partial

from .. import attempts, graph, queries
from ..database_errors import is_passing, is_trouble
from ..exception import WorkerDiedJobError
from . import events

BATCH = 100
SWEEP_BATCH = 5000
MOST_REFUSED = 10
_SILENT = "its heartbeat stopped"


def recover_orphans(connection, unwritten, stale_after_seconds, max_backoff, buried=None, how=_SILENT):
    """Take back a batch of the jobs of workers that are dead.

    :param connection: :class:`~.connection.Connection`
    :param unwritten: takes those that can't be taken back: :class:`~.unwritten.UnwrittenEnds`
    :param str buried: name of the first worker of a process that is known to be dead
    :param str how: what is known of its end
    :return: whether there may be more
    """
    with connection.transaction() as cr:
        queries.bury_workers(cr, stale_after_seconds, buried)
    ended, recovered, refused = [], [], []
    with connection.transaction() as cr:
        orphans = queries.orphaned_jobs(cr, stale_after_seconds, list(unwritten.claims()), BATCH)
        for orphan in orphans:
            known = how if (orphan.worker_id or "").partition("/")[0] == buried else _SILENT
            take_back = partial(_take_back, orphan=orphan, how=known, max_backoff=max_backoff)
            try:
                with queries.savepoint(cr):
                    if take_back(cr):
                        ended.append(orphan.id)
                recovered.append(orphan.id)
            except Exception as error:
                if is_trouble(error):
                    raise
                refused.append((orphan, take_back))
    for orphan, take_back in refused:
        unwritten.add(orphan, take_back)
    if recovered:
        events.jobs_recovered(recovered)
    if ended:
        settle_children(connection, ended)
    return len(orphans) == BATCH


def _take_back(cr, orphan, how, max_backoff):
    """End the attempt of a worker that is dead: a failure if it had begun; uncounted if it had only been claimed ahead.

    :return: whether the job has ended, so that the jobs after it are to be settled
    """
    if not orphan.begun:
        attempts.give_back_unbegun(cr, [orphan])
        return False
    if orphan.cancel_requested:
        attempts.stop(cr, orphan, orphan.duration)
        return True
    error = WorkerDiedJobError(f"worker {orphan.worker_id} is gone: {how}")
    following = attempts.fail(
        cr,
        orphan,
        error,
        before=orphan.exc_info,
        outcome="died",
        duration=orphan.duration,
        max_backoff=max_backoff,
    )
    if following and following.transition == "fail":
        events.job_failed(orphan, following, error)
    return following is not None and following.transition != "retry"


def settle_children(connection, job_ids):
    """Decide the jobs after some that have ended, in a transaction of its own."""
    with connection.transaction() as cr:
        graph.settle_children(cr, job_ids, wait=False)


def settle(connection, job_ids):
    """Decide jobs, and those after them, in a transaction of its own."""
    with connection.transaction() as cr:
        graph.settle(cr, [*job_ids, *queries.children_of(cr, job_ids)], wait=False)


def sweep(connection, after_id):
    """Settle waiting jobs whose parents have ended, a batch at each call.

    :param int after_id: where the last sweep stopped
    :return: ``(where the next one is to go on, errors of jobs that could not be settled)``
    """
    with connection.transaction() as cr:
        ids = queries.waiting_jobs(cr, after_id, SWEEP_BATCH)
    refused = []
    _settle_each(connection, ids, refused)
    return (ids[-1] if len(ids) == SWEEP_BATCH else 0), refused


def _settle_each(connection, ids, refused):
    """Settle jobs together; where that fails, by halves, to find the few that fail."""
    try:
        with connection.transaction() as cr:
            graph.settle(cr, ids, wait=False)
    except Exception as error:
        if is_passing(error) or len(refused) == MOST_REFUSED:
            raise
        if len(ids) == 1:
            refused.append(error)
            return
        middle = len(ids) // 2
        for half in (ids[:middle], ids[middle:]):
            _settle_each(connection, half, refused)
