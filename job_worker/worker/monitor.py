"""What goes on beside a worker's claiming: stopping jobs at their deadline, signs of life, the jobs of dead workers."""

import contextlib
import threading
import time

import psutil

from .. import queries
from . import events, recovery
from .attempt import CANCEL, LOST, TIMEOUT
from .connection import DEAD_AFTER_SECONDS, TROUBLE, Connection
from .executor import write_end
from .home_check import require_home

TICK_SECONDS = 0.5
CHECK_ATTEMPTS_SECONDS = 1.0
INTERRUPT_AGAIN_SECONDS = 0.5
ABANDON_AFTER_SECONDS = 2.0
LOCK_TIMEOUT = "2s"
ABANDON_AFTER_COMMIT_SECONDS = 60.0
# What share of the time a sweep over a big backlog of waiting jobs may take.
MAX_SWEEP_SHARE = 0.1


class Monitor:
    """Watches over one :class:`~.queue_worker.QueueWorker` in two threads.

    One keeps the deadlines and never talks to the database, so that nothing there can hold it up. The other does what
    needs the database.

    :param worker: the worker
    :param bool session: see :class:`~.connection.Connection`
    """

    def __init__(self, worker, session=True):
        self._worker = worker
        self._session = session
        # Somebody who holds a row for long must not keep the worker from giving signs of life.
        self._connection = Connection(worker.db_name, require_home, session=session, lock_timeout=LOCK_TIMEOUT)
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(chore,), name=f"job_worker.{name}", daemon=True)
            for name, chore in (("deadlines", self._enforce), ("upkeep", self._keep_up))
        ]
        self._process = psutil.Process()
        self._abandoned = []
        self._next_check = self._next_beat = self._next_recovery = 0.0
        self._last_beat = time.monotonic()
        self._cut_off = False
        self._sweep_from = 0
        self._next_sweep = None
        self._clocks = None

    def start(self):
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(*TROUBLE):
            self._end_abandoned()
        self._connection.close()

    def claims(self):
        """Claims of abandoned attempts whose end is not written yet: ``{job id: claim_seq}``."""
        return {attempt.claim.id: attempt.claim.claim_seq for attempt in self._abandoned.copy()}

    def _repeat(self, chore):
        while not self._stopped.wait(TICK_SECONDS):
            try:
                chore()
            except TROUBLE:
                continue  # the worker's own loop tells about it and finds out when it is over
            except Exception as error:
                events.unexpected("monitor", error)

    # --- deadlines ---------------------------------------------------------------------------------------------------

    def _enforce(self):
        """Interrupt what is past its deadline, and give up on what does not react, be it a job or the server."""
        now = time.monotonic()
        for connection in (self._worker.connection, self._connection):
            connection.cut_if_silent(max(DEAD_AFTER_SECONDS, self._worker.stale_after_seconds))
        for attempt in self._worker.pool.running():
            interrupted_for = now - (attempt.interrupted_at or now)
            committed_for = now - (attempt.committed_at or now)
            if attempt.overdue and not attempt.reason:
                self._interrupt(attempt, TIMEOUT)
            elif interrupted_for > ABANDON_AFTER_SECONDS or committed_for > ABANDON_AFTER_COMMIT_SECONDS:
                self._abandon(attempt)
            elif interrupted_for > INTERRUPT_AGAIN_SECONDS:
                attempt.interrupt(attempt.reason)

    def _interrupt(self, attempt, reason):
        if attempt.interrupt(reason):
            events.attempt_interrupted(attempt.claim, reason)

    def _abandon(self, attempt):
        """Take a job from a thread that can't be interrupted; its end is written by the other thread."""
        self._abandoned.append(attempt)
        if not self._worker.pool.abandon(attempt):
            self._abandoned.remove(attempt)
            return
        reason = "done, but what follows its commit does not end" if attempt.committed_at else attempt.reason
        events.attempt_abandoned(attempt.claim, reason)
        self._worker.on_thread_abandoned()

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def _keep_up(self):
        now, worker = time.monotonic(), self._worker
        if now >= self._next_check:
            self._check_attempts()
            self._next_check = now + CHECK_ATTEMPTS_SECONDS
        if now >= self._next_beat and worker.name:
            self._beat(worker.name)
            self._next_beat = now + worker.heartbeat_interval_seconds
        self._end_abandoned()
        if now >= self._next_recovery and worker.name:
            self._next_recovery = now + max(1.0, worker.stale_after_seconds / 4)
            self._recover()
        if self._next_sweep is not None and now >= self._next_sweep:
            self._sweep()

    def _end_abandoned(self):
        """End the sessions of abandoned attempts, so that nothing of them can be committed, and write their end."""
        for attempt in self._abandoned.copy():
            if not attempt.abandoned:
                continue
            with self._connection.transaction() as cr:
                if attempt.backend_pid and self._session:
                    queries.terminate_backend(cr, attempt.backend_pid)
                ended = bool(attempt.committed_at) or (
                    attempt.reason != LOST and write_end(cr, attempt, None, self._worker.max_backoff_seconds)
                )
            self._abandoned.remove(attempt)
            if ended:
                recovery.settle_children(self._connection, [attempt.claim.id])

    def _check_attempts(self):
        """Find running attempts whose job was cancelled, recovered or ended by others, or whose session ended."""
        attempts = {a.claim.id: a for a in self._worker.pool.running() if a.duration > CHECK_ATTEMPTS_SECONDS}
        if not attempts:
            return
        pids = {job_id: attempt.backend_pid for job_id, attempt in attempts.items()}
        with self._connection.transaction() as cr:
            states = queries.attempt_states(cr, {job_id: a.claim.claim_seq for job_id, a in attempts.items()})
            gone = self._session and queries.ended_sessions(cr, pids.values())
        for job_id, attempt in attempts.items():
            if gone and pids[job_id] in gone:
                attempt.cut(pids[job_id])
            reason = LOST if job_id not in states else CANCEL if states[job_id] else None
            if reason and not attempt.reason:
                self._interrupt(attempt, reason)

    def _beat(self, name):
        worker = self._worker
        memory = self._process.memory_info().rss // 2**20
        try:
            with self._connection.transaction() as cr:
                running = len(worker.pool.running())
                pause_requested = queries.beat(cr, name, worker.state, worker.obstacles.reason, running, memory)
        except TROUBLE:
            self._cut_off = True
            raise
        worker.on_beat(name, pause_requested)
        now, cut_off, self._cut_off = time.monotonic(), self._cut_off, False
        if cut_off and now - self._last_beat > worker.stale_after_seconds / 2:
            # The database was away, so others could not report either: give them time before taking them for dead.
            self._next_recovery = now + worker.stale_after_seconds
        self._last_beat = now

    def _recover(self):
        worker = self._worker
        with self._connection.transaction() as cr:
            orphans, waiting, server_time = queries.upkeep_due(cr, worker.stale_after_seconds)
        if self._clock_jumped(server_time):
            # All workers look dead at once, this one among them: give them time to report.
            self._next_beat = 0.0
            self._next_recovery = time.monotonic() + worker.stale_after_seconds
        elif orphans and recovery.recover_orphans(
            self._connection, worker.stale_after_seconds, worker.max_backoff_seconds
        ):
            self._next_recovery = 0.0
        if waiting and self._next_sweep is None:
            self._next_sweep = 0.0

    def _sweep(self):
        """Settle the next batch of the waiting jobs; then the one after it, until all have been looked at."""
        begin = time.monotonic()
        self._sweep_from = recovery.sweep(self._connection, self._sweep_from)
        end = time.monotonic()
        self._next_sweep = end + (end - begin) / MAX_SWEEP_SHARE if self._sweep_from else None

    def _clock_jumped(self, server_time):
        """Whether the server's clock went on further than ours since the last look: it was set, the server is another
        one, or this host stood still.
        """
        clocks, self._clocks = self._clocks, (server_time, time.monotonic())
        if clocks is None:
            return False
        theirs, ours = (now - before for now, before in zip(self._clocks, clocks, strict=True))
        return theirs - ours > self._worker.stale_after_seconds / 4
