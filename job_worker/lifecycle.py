"""The life of a job, in one place: which state may follow which, what each step writes, and what a failure leads to.

Buttons, workers, recovery and ``run_now()`` all change states through :func:`move`; nothing else writes ``state``.
"""

from dataclasses import dataclass

from odoo.tools import split_every

from .job import CANCELLED, DONE, FAILED, PENDING, STARTED, WAITING

NOW = "(clock_timestamp() AT TIME ZONE 'UTC')"
NEXT_CLAIM = "nextval('queue_job_claim_seq')"
ACTIVE = (WAITING, PENDING, STARTED)
ENDED = (DONE, FAILED, CANCELLED)

NOT_OF_THIS_DATABASE = (
    "Cancelled, not run: this database was neutralized or is a copy, and the job belongs to the original."
)

WAKE_UP = "queue_job_wake_up"
"""Channel on which idle workers are woken."""
MAX_NOTIFICATION_BYTES = 7000

SETTLE = "queue_job_settle"
"""Channel on which workers are told of jobs to settle, with those after them: ids with commas between."""
_IDS_PER_NOTIFICATION = MAX_NOTIFICATION_BYTES // 20  # of up to 19 digits

FIRST_BACKOFF_SECONDS = 10
MAX_BACKOFF_SECONDS = 3600
STALE_AFTER_SECONDS = 60
"""How long a worker may be silent unless it is told otherwise."""
# Nothing bounds uncounted attempts that ask for no wait: from so many in a row, there is one.
UNCOUNTED_AT_ONCE = 10
UNCOUNTED_WAIT_SECONDS = 1


@dataclass(frozen=True)
class Transition:
    """One legal step of a job.

    :param sources: states it may start from
    :param target: state it leads to
    :param writes: SQL of what it writes besides ``state``; its ``%(…)s`` are the parameters of :func:`move`
    :param unless_cancelled: not for a running job that was asked to stop
    """

    sources: tuple
    target: str
    writes: str
    unless_cancelled: bool = False

    @property
    def set_clause(self):
        """SQL after ``SET``."""
        return f"state = '{self.target}', {self.writes}"


# What a job forgets when it goes back to where it can be claimed.
_UNCLAIMED = "worker_id = NULL, started_at = NULL, completed_at = NULL, cancelled_at = NULL, cancel_requested = false"
_FRESH = (
    _UNCLAIMED + ", attempts = 0, database_failures = 0, worker_died_at = NULL, exc_info = NULL, result = NULL,"
    " duration = NULL"
)
_DUE_NOW = f"is_due = (scheduled_at IS NULL OR scheduled_at <= {NOW})"
_AFTER_DELAY = (
    f"scheduled_at = CASE WHEN %(delay)s > 0 THEN {NOW} + make_interval(secs => %(delay)s) END,"
    " is_due = (%(delay)s <= 0)"
)
# Failures of a kind have the same group; 52 bits fit into a number of a web client.
_ERROR_GROUP = (
    "error_class = {error_class}, error_place = {error_place}, error_group ="
    " hashtextextended(concat_ws(' ', model_name, method_name, {error_class}, {error_place}), 0) & 4503599627370495"
)
_RAISED = _ERROR_GROUP.format(error_class="%(error_class)s::varchar", error_place="%(error_place)s::varchar")
_NOT_RAISED = _ERROR_GROUP.format(error_class="NULL", error_place="NULL")
_RAN = f"started_at = {NOW} - make_interval(secs => %(duration)s), duration = %(duration)s"

TRANSITIONS = {
    # by workers
    "claim": Transition(
        (PENDING,),
        STARTED,
        f"worker_id = %(worker_id)s, claim_seq = {NEXT_CLAIM}, started_at = {NOW}",
    ),
    "finish": Transition((STARTED,), DONE, f"{_RAN}, completed_at = {NOW}, result = %(result)s, exc_info = NULL"),
    "retry": Transition(
        (STARTED,),
        PENDING,
        f"{_UNCLAIMED}, {_AFTER_DELAY}, attempts = %(attempts)s, exc_info = %(exc_info)s,"
        f" worker_died_at = CASE WHEN %(worker_died)s THEN {NOW} END",
        unless_cancelled=True,
    ),
    "fail": Transition(
        (STARTED,),
        FAILED,
        f"{_RAN}, completed_at = {NOW}, attempts = %(attempts)s, exc_info = %(exc_info)s, scheduled_at = NULL,"
        f" {_RAISED}",
        unless_cancelled=True,
    ),
    "give_back": Transition((STARTED,), PENDING, f"{_UNCLAIMED}, is_due = true", unless_cancelled=True),
    "put_off": Transition((STARTED,), PENDING, f"{_UNCLAIMED}, {_AFTER_DELAY}", unless_cancelled=True),
    "postpone": Transition(
        (STARTED,),
        PENDING,
        f"{_UNCLAIMED}, {_AFTER_DELAY}, exc_info = %(exc_info)s, "
        "database_failures = COALESCE(database_failures, 0) + %(database_failure)s",
        unless_cancelled=True,
    ),
    "stop": Transition((STARTED,), CANCELLED, f"{_RAN}, cancelled_at = {NOW}, exc_info = %(exc_info)s"),
    # by what happened to the parents
    "promote": Transition((WAITING,), PENDING, f"ended_by_id = NULL, {_DUE_NOW}"),
    "block": Transition(
        (WAITING,), FAILED, f"ended_by_id = %(parent_id)s, completed_at = {NOW}, exc_info = %(exc_info)s, {_NOT_RAISED}"
    ),
    "drop": Transition(
        (WAITING, PENDING, FAILED), CANCELLED, f"ended_by_id = %(parent_id)s, completed_at = NULL, cancelled_at = {NOW}"
    ),
    "revive": Transition((PENDING, FAILED, CANCELLED), WAITING, f"{_FRESH}, ended_by_id = NULL, is_due = false"),
    # by people
    "requeue": Transition(ENDED, PENDING, f"{_FRESH}, ended_by_id = NULL, scheduled_at = NULL, is_due = true"),
    "requeue_waiting": Transition(ENDED, WAITING, f"{_FRESH}, ended_by_id = NULL, scheduled_at = NULL, is_due = false"),
    "set_done": Transition(
        (WAITING, PENDING, FAILED, CANCELLED),
        DONE,
        f"ended_by_id = NULL, completed_at = {NOW}, cancelled_at = NULL, exc_info = NULL",
    ),
    "set_failed": Transition(
        (WAITING, PENDING, CANCELLED),
        FAILED,
        f"ended_by_id = NULL, completed_at = {NOW}, cancelled_at = NULL, scheduled_at = NULL, exc_info = %(exc_info)s,"
        f" {_NOT_RAISED}",
    ),
    "cancel": Transition(
        (WAITING, PENDING, FAILED), CANCELLED, f"ended_by_id = NULL, completed_at = NULL, cancelled_at = {NOW}"
    ),
    # by who finds it in a copy of the database it was stored in; data/neutralize.sql has the same
    "disown": Transition(
        ACTIVE,
        CANCELLED,
        f"ended_by_id = NULL, completed_at = NULL, cancelled_at = {NOW}, exc_info = '{NOT_OF_THIS_DATABASE}'",
    ),
    # in the caller's own transaction
    "run_now": Transition((PENDING,), STARTED, f"worker_id = NULL, claim_seq = {NEXT_CLAIM}, started_at = {NOW}"),
}

_MOVE = {
    name: (
        f"UPDATE queue_job SET {step.set_clause}"
        f" WHERE id = ANY(%(ids)s) AND state IN ({', '.join(map(repr, step.sources))})"
        f"{' AND NOT cancel_requested' if step.unless_cancelled else ''}"
    )
    for name, step in TRANSITIONS.items()
}
# An attempt may end only while it is still the one that owns the job; index: primary key.
_FENCE = " AND claim_seq = ANY(%(claim_seqs)s)"


def move(cr, name, ids, *, claim_seqs=None, **params):
    """Take jobs through a transition.

    Jobs that are not in one of its source states stay as they are.

    :param cr: cursor, of Odoo or of psycopg2
    :param str name: key of :data:`TRANSITIONS`
    :param ids: ids of jobs
    :param claim_seqs: fence: only jobs that one of these claims still owns
    :param params: what the transition's ``writes`` asks for
    :return: ids of the jobs that moved
    :rtype: list[int]
    """
    sql = _MOVE[name] + (_FENCE if claim_seqs is not None else "") + " RETURNING id, channel, priority"
    cr.execute(sql, {"ids": list(ids), "claim_seqs": claim_seqs, **params})
    moved = cr.fetchall()
    if moved and TRANSITIONS[name].target == PENDING:
        wake_workers(cr, ((channel, priority, job_id) for job_id, channel, priority in moved))
    return [row[0] for row in moved]


def wake_workers(cr, claimable=()):
    """Wake idle workers at the commit of this transaction.

    The notification tells where to look: a line for each channel with its best job, as channel, priority and id with
    tabs between. Without lines, the workers look everywhere.

    :param claimable: ``(channel, priority, id)`` of jobs that became claimable
    """
    best = {}
    for channel, *key in claimable:
        best[channel] = min(best.get(channel, key), key)
    lines = "\n".join(f"{channel}\t{priority}\t{job_id}" for channel, (priority, job_id) in best.items())
    if len(lines.encode()) > MAX_NOTIFICATION_BYTES or any(set("\t\n\r") & set(channel) for channel in best):
        lines = ""
    cr.execute("SELECT pg_notify(%s, %s)", (WAKE_UP, lines))


def have_settled(cr, ids):
    """Have workers settle jobs, and those after them, once this transaction is committed.

    For what its snapshot does not show: parents that others ended meanwhile, children that others stored.
    """
    texts = [",".join(map(str, chunk)) for chunk in split_every(_IDS_PER_NOTIFICATION, sorted(ids))]
    cr.execute("SELECT pg_notify(%s, ids) FROM unnest(%s) ids", (SETTLE, texts))


@dataclass(frozen=True)
class NextTry:
    """What follows an attempt that failed.

    :param transition: ``"retry"``, ``"fail"``, or ``"stop"`` where the job was to be cancelled
    :param attempts: the job's new count of attempts
    :param delay: seconds until the next try
    """

    transition: str
    attempts: int
    delay: float


def after_failure(
    attempts,
    max_retries,
    *,
    final=False,
    seconds=None,
    ignore_retry=False,
    uncounted=0,
    max_backoff=MAX_BACKOFF_SECONDS,
):
    """Decide what follows a failed attempt; the only place that does.

    :param int attempts: failed attempts before this one
    :param int max_retries: retries after the first try, 0 for no end
    :param bool final: another try makes no sense
    :param float seconds: delay asked for by :class:`~.exception.RetryableJobError`, instead of the back-off
    :param bool ignore_retry: don't count this attempt
    :param int uncounted: attempts right before this one that were not counted
    :param float max_backoff: longest delay of the back-off, in seconds
    :rtype: NextTry
    """
    if not ignore_retry:
        attempts += 1
        if final or (max_retries and attempts > max_retries):
            return NextTry("fail", attempts, 0)
    if seconds is None:
        # beyond 2**30 the cap holds anyway
        seconds = min(FIRST_BACKOFF_SECONDS * 2 ** min(max(attempts, 1) - 1, 30), max_backoff)
    if ignore_retry and uncounted + 1 >= UNCOUNTED_AT_ONCE:
        seconds = max(seconds, UNCOUNTED_WAIT_SECONDS)
    return NextTry("retry", attempts, max(seconds, 0))
