"""What goes on beside a worker's claiming: stopping jobs at their deadline, signs of life, the jobs of dead workers."""

import threading
import time
from dataclasses import dataclass
from functools import partial

import psutil

from .. import queries
from ..database_errors import is_passing, is_trouble
from . import events, recovery
from .attempt import CANCEL, LOST, TIMEOUT
from .connection import DEAD_AFTER_SECONDS, Connection, scarcity
from .executor import write_end
from .home_check import require_home

TICK_SECONDS = 0.5
CHECK_ATTEMPTS_SECONDS = 1.0
INTERRUPT_AGAIN_SECONDS = 0.5
ABANDON_AFTER_SECONDS = 2.0
PATIENCE_SECONDS = 15.0
ABANDON_AFTER_COMMIT_SECONDS = 60.0
# What share of the time a sweep over a big backlog of waiting jobs may take, of all workers together.
MAX_SWEEP_SHARE = 0.1


@dataclass
class _Chore:
    """What is to be done again and again.

    :param str name: for the log and the worker's record
    :param act: does it
    :param float interval: seconds
    """

    name: str
    act: object
    interval: float
    due_at: float = 0.0


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
        self._connection = Connection(worker.db_name, require_home, session=session)
        self._stopped = threading.Event()
        self._beats = _Chore("signs of life", self._beat, worker.heartbeat_interval_seconds)
        self._recovery = _Chore("recovery", self._recover, max(1.0, worker.stale_after_seconds / 4))
        self._sweeping = _Chore("jobs that wait", self._sweep, self._recovery.interval, due_at=float("inf"))
        self._upkeep = [
            self._beats,
            _Chore("running attempts", self._check_attempts, CHECK_ATTEMPTS_SECONDS),
            _Chore("ends of attempts", self._write_ends, 0.0),
            self._recovery,
            self._sweeping,
        ]
        self._threads = [
            threading.Thread(target=self._repeat, args=(chores,), name=f"job_worker.{name}", daemon=True)
            for name, chores in (("deadlines", [_Chore("deadlines", self._enforce, 0.0)]), ("upkeep", self._upkeep))
        ]
        self._process = psutil.Process()
        self._last_beat = time.monotonic()
        self._cut_off = False
        self._sweep_from = 0
        self._clocks = None

    def start(self):
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._do(_Chore("ends of attempts", self._write_ends, 0.0))
        self._connection.close()

    def beat_soon(self):
        """Let the worker's record tell what has changed."""
        self._beats.due_at = 0.0

    def _repeat(self, chores):
        while not self._stopped.wait(TICK_SECONDS):
            for chore in chores:
                if time.monotonic() >= chore.due_at:
                    self._do(chore)
            if scarcity and chores is self._upkeep:
                self._connection.close()

    def _do(self, chore):
        """One chore of several, none of which may keep the others from being done."""
        chore.due_at = time.monotonic() + chore.interval
        try:
            chore.act()
        except Exception as error:
            if scarcity.note(error):
                events.connections_scarce(self._worker.db_name, error)
            # Of a database that is lost the worker's own loop tells; that somebody is in the way is told if it lasts.
            if not (is_trouble(error) and self._worker.lost):
                self._worker.in_trouble(chore.name, error, PATIENCE_SECONDS if is_passing(error) else 0)
        else:
            self._worker.out_of_trouble(chore.name)

    # --- deadlines ---------------------------------------------------------------------------------------------------

    def _enforce(self):
        """Interrupt what is past its deadline, and give up on what does not react, be it a job or the server."""
        now = time.monotonic()
        for connection in (self._worker.connection, self._connection):
            connection.cut_if_silent(max(DEAD_AFTER_SECONDS, self._worker.stale_after_seconds))
        failed = None
        for attempt in self._worker.pool.running():
            try:
                self._enforce_on(attempt, now)
            except Exception as error:
                failed = error
        if failed:
            raise failed

    def _enforce_on(self, attempt, now):
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
        unwritten = self._worker.unwritten
        end = unwritten.add(attempt.claim)
        if not self._worker.pool.abandon(attempt):
            unwritten.remove(end)
            return
        end.write = partial(self._end_abandoned, attempt=attempt, duration=attempt.duration)
        reason = "done, but what follows its commit does not end" if attempt.committed_at else attempt.reason
        events.attempt_abandoned(attempt.claim, reason)
        self._worker.on_thread_abandoned()

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def _write_ends(self):
        self._worker.unwritten.flush(self._connection)

    def _end_abandoned(self, cr, attempt, duration):
        """End the session of an abandoned attempt, so that nothing of it can be committed, and write its end."""
        if attempt.backend_pid and self._session:
            queries.terminate_backend(cr, attempt.backend_pid)
        if attempt.committed_at or attempt.reason == LOST:
            return bool(attempt.committed_at)
        return write_end(cr, attempt, None, duration, self._worker.max_backoff_seconds)

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

    def _beat(self):
        worker, name = self._worker, self._worker.name
        if not name:
            return
        memory = self._process.memory_info().rss // 2**20
        try:
            with self._connection.transaction() as cr:
                running = len(worker.pool.running())
                pause_requested = queries.beat(cr, name, worker.state, worker.reason, running, memory)
        except Exception as error:
            self._cut_off = is_passing(error)
            self.beat_soon()
            raise
        worker.on_beat(name, pause_requested)
        now, cut_off, self._cut_off = time.monotonic(), self._cut_off, False
        if cut_off and now - self._last_beat > worker.stale_after_seconds / 2:
            # The database was away, so others could not report either: give them time before taking them for dead.
            self._recovery.due_at = now + worker.stale_after_seconds
        self._last_beat = now

    def _recover(self):
        worker = self._worker
        if not worker.serving:
            return
        with self._connection.transaction() as cr:
            orphans, waiting, server_time = queries.upkeep_due(cr, worker.stale_after_seconds)
        if self._clock_jumped(server_time):
            # All workers look dead at once, this one among them: give them time to report.
            self.beat_soon()
            self._recovery.due_at = time.monotonic() + worker.stale_after_seconds
        elif orphans and recovery.recover_orphans(
            self._connection, worker.unwritten, worker.stale_after_seconds, worker.max_backoff_seconds
        ):
            self._recovery.due_at = 0.0
        if waiting:
            self._sweeping.due_at = min(self._sweeping.due_at, time.monotonic())

    def _sweep(self):
        """Settle the next batch of the waiting jobs; then the one after it, until all have been looked at."""
        begin = time.monotonic()
        self._sweep_from, refused = recovery.sweep(self._connection, self._sweep_from)
        took, self._sweeping.due_at = time.monotonic() - begin, float("inf")
        if self._sweep_from:
            with self._connection.transaction() as cr:
                workers = max(len(queries.workers_alive(cr)), 1)
            self._sweeping.due_at = begin + workers * took / MAX_SWEEP_SHARE
        if refused:
            self._sweeping.due_at = min(self._sweeping.due_at, time.monotonic() + self._sweeping.interval)
            raise refused[0]

    def _clock_jumped(self, server_time):
        """Whether the server's clock went on further than ours since the last look: it was set, the server is another
        one, or this host stood still.
        """
        clocks, self._clocks = self._clocks, (server_time, time.monotonic())
        if clocks is None:
            return False
        theirs, ours = (now - before for now, before in zip(self._clocks, clocks, strict=True))
        return theirs - ours > self._worker.stale_after_seconds / 4
