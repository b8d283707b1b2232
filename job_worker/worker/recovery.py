"""Jobs of dead workers are taken back, jobs whose promotion got lost are promoted. Any living worker does it."""

from types import SimpleNamespace

from .. import attempts, graph, queries
from ..exception import WorkerDiedJobError
from . import events

BATCH = 100
SWEEP_BATCH = 5000


def recover_orphans(connection, stale_after_seconds, max_backoff, buried=None, how="its heartbeat stopped"):
    """Take back a batch of the jobs of workers that are dead.

    What had begun counts as a failed attempt; what had only been claimed ahead does not.

    :param connection: :class:`~.connection.Connection`
    :param str buried: name of the first worker of a process that is known to be dead
    :param str how: what is known of its end
    :return: whether there may be more
    """
    with connection.transaction() as cr:
        queries.bury_workers(cr, stale_after_seconds, buried)
    failed, recovered, errors = [], [], []
    with connection.transaction() as cr:
        for row in queries.orphaned_jobs(cr, stale_after_seconds, BATCH):
            job = SimpleNamespace(id=row[0], claim_seq=row[1], worker_id=row[2], attempts=row[4], max_retries=row[5])
            begun, cancel_requested, exc_info, duration, job.uuid = row[3], *row[6:10]
            recovered.append(job.id)
            if not begun:
                attempts.give_back_unbegun(cr, [job])
            elif cancel_requested:
                attempts.stop(cr, job, duration)
                failed.append(job.id)
            else:
                known = how if (job.worker_id or "").partition("/")[0] == buried else "its heartbeat stopped"
                error = WorkerDiedJobError(f"worker {job.worker_id} is gone: {known}")
                following = attempts.fail(
                    cr, job, error, before=exc_info, outcome="died", duration=duration, max_backoff=max_backoff
                )
                if following and following.transition != "retry":
                    failed.append(job.id)
                if following and following.transition == "fail":
                    errors.append((job, following, error))
    if recovered:
        events.jobs_recovered(recovered)
    for failure in errors:
        events.job_failed(*failure)
    if failed:
        settle_children(connection, failed)
    return len(recovered) == BATCH


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
    :return: where the next one is to go on
    """
    with connection.transaction() as cr:
        ids = queries.waiting_jobs(cr, after_id, SWEEP_BATCH)
        graph.settle(cr, ids, wait=False)
    return ids[-1] if len(ids) == SWEEP_BATCH else 0
