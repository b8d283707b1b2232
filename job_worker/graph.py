"""What the end, or the return, of a job means for the jobs after it.

Readiness is derived: a job's parents are looked at, nothing is counted. So it does not matter how often, or by whom, a
job is settled, and a crash in between is healed by settling it again.
"""

from . import queries
from .job import CANCELLED, DONE, FAILED, WAITING
from .lifecycle import ENDED, move

PARENTS_GONE = "The jobs that it waited for were deleted before they had decided it"


def verdict(state, run_on_failure, parents):
    """Decide a job by its parents; the only place that does.

    :param str state: the job's own state
    :param bool run_on_failure: whether it follows a failure
    :param dict parents: lowest parent id by state, for the states its parents are in; empty if all were deleted, by SQL
    :return: ``(transition, parent id)``, or ``None`` while nothing follows
    """
    if CANCELLED in parents:
        return ("drop", parents[CANCELLED]) if state != CANCELLED else None
    if state != WAITING:
        return None
    if not parents:  # how they ended, or would have, nobody knows
        return ("drop" if run_on_failure else "block"), None
    if not run_on_failure and FAILED in parents:
        return "block", parents[FAILED]
    if any(parent_state not in ENDED for parent_state in parents):
        return None
    if run_on_failure and FAILED not in parents:
        return "drop", parents[DONE]
    return "promote", None


def settle(cr, ids, wait=True):
    """Decide jobs by their parents, then the jobs after those that were decided, to the end of the graph.

    :param ids: jobs that may have become ready, failed or cancelled
    :param bool wait: for jobs that somebody is changing; else the workers' next sweep settles them
    """
    while ids:
        decisions = _decide(cr, ids)
        if decisions:
            # Who requeues a parent locks its children too. So look again under the lock: a parent that had ended
            # may have been put back meanwhile.
            ids = [job_id for job_ids in decisions.values() for job_id in job_ids]
            decisions = _decide(cr, queries.lock_jobs(cr, ids, wait))
        ended = []
        for (transition, parent_id), job_ids in decisions.items():
            text = f"Parent job {parent_id} failed" if parent_id else PARENTS_GONE
            moved = move(cr, transition, job_ids, parent_id=parent_id, exc_info=text)
            if transition != "promote":
                ended += moved
        ids = queries.children_of(cr, ended) if ended else []


def _decide(cr, ids):
    """What follows for jobs from the states of their parents: ``{(transition, parent id): job ids}``."""
    decisions = {}
    for job_id, state, run_on_failure, parents in queries.undecided_with_parents(cr, ids):
        if decision := verdict(state, run_on_failure, parents):
            decisions.setdefault(decision, []).append(job_id)
    return decisions


def settle_children(cr, ids, wait=True):
    """Decide the jobs after ``ids``, which have just ended; ``wait`` as for :func:`settle`."""
    settle(cr, queries.children_of(cr, ids), wait)


def redecide_children(cr, ids):
    """Decide the jobs after ``ids`` anew, which somebody ended by hand: what their old state led to holds no more."""
    children = queries.children_of(cr, ids)
    settle(cr, children + _revive(cr, children))


def requeue(cr, ids):
    """Put ended jobs back to where they can run, and the jobs that ended only because of them back to waiting.

    :return: ids of the jobs that were put back; not those whose identity key an active job holds by now
    """
    free = queries.with_free_identity(cr, ids)
    waiting = queries.with_unfinished_parents(cr, free)
    requeued = move(cr, "requeue_waiting", waiting) if waiting else []
    requeued += move(cr, "requeue", set(free) - waiting)
    settle(cr, _revive(cr, queries.children_of(cr, requeued)) + list(waiting))
    return requeued


def _revive(cr, ids):
    """Take jobs that their parents had decided, and those after them, back to waiting."""
    revived = []
    while ids:
        queries.lock_jobs(cr, ids)  # see settle()
        states = queries.decided_by_parents(cr, ids)
        ended = [job_id for job_id, state in states.items() if state in ENDED]
        ready = [job_id for job_id, state in states.items() if state not in ENDED and state != WAITING]
        moved = move(cr, "revive", ready + (queries.with_free_identity(cr, ended) if ended else []))
        revived += moved
        ids = queries.children_of(cr, moved) if moved else []
    return revived
