"""The thread that shows that the worker lives, stops jobs at their deadline, and looks after the jobs of others."""

import threading
import time

import psutil

from .. import queries
from . import events, recovery
from .attempt import CANCEL, LOST, TIMEOUT
from .connection import TROUBLE, Connection
from .executor import write_end

TICK_SECONDS = 0.5
CHECK_ATTEMPTS_SECONDS = 1.0
INTERRUPT_AGAIN_SECONDS = 0.5
ABANDON_AFTER_SECONDS = 2.0


class Monitor:
    """Watches over one :class:`~.queue_worker.QueueWorker`.

    :param worker: the worker
    """

    def __init__(self, worker):
        self._worker = worker
        self._connection = Connection(worker.db_name)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="job_worker.monitor", daemon=True)
        self._process = psutil.Process()
        self._next_check = self._next_beat = self._next_recovery = 0.0
        self._sweep_from = 0

    def start(self):
        self._thread.start()

    def stop(self):
        self._stopped.set()
        self._thread.join()
        self._connection.close()

    def _loop(self):
        while not self._stopped.wait(TICK_SECONDS):
            try:
                self._enforce(self._worker.pool.running())
                self._report(time.monotonic())
            except TROUBLE:
                continue  # the worker's own loop tells about it and finds out when it is over
            except Exception as error:  # noqa: BLE001 the next tick must come
                events.unexpected("monitor", error)

    def _enforce(self, attempts):
        """Interrupt what is past its deadline, and give up on what does not react."""
        now = time.monotonic()
        for attempt in attempts:
            if attempt.overdue and not attempt.reason:
                events.attempt_interrupted(attempt.claim, TIMEOUT)
                attempt.interrupt(TIMEOUT)
            elif attempt.interrupted_at and now - attempt.interrupted_at > ABANDON_AFTER_SECONDS:
                self._abandon(attempt)
            elif attempt.interrupted_at and now - attempt.interrupted_at > INTERRUPT_AGAIN_SECONDS:
                attempt.interrupt(attempt.reason)

    def _abandon(self, attempt):
        """Take a job from a thread that can't be interrupted: its database session ends, its outcome is written here."""
        if not self._worker.pool.abandon(attempt):
            return
        events.attempt_abandoned(attempt.claim, attempt.reason)
        self._worker.on_thread_abandoned()
        with self._connection.transaction() as cr:
            if attempt.backend_pid:
                queries.terminate_backend(cr, attempt.backend_pid)
            ended = attempt.reason != LOST and write_end(cr, attempt, None, self._worker.max_backoff_seconds)
        if ended:
            recovery.settle_children(self._connection, [attempt.claim.id])

    def _report(self, now):
        worker = self._worker
        if now >= self._next_check:
            self._next_check = now + CHECK_ATTEMPTS_SECONDS
            self._check_attempts()
        if now >= self._next_beat and worker.name:
            self._next_beat = now + worker.heartbeat_interval_seconds
            self._beat()
        if now >= self._next_recovery:
            self._next_recovery = now + max(1.0, worker.stale_after_seconds / 4)
            recovery.recover_orphans(self._connection, worker.stale_after_seconds, worker.max_backoff_seconds)
            self._sweep_from = recovery.sweep(self._connection, self._sweep_from)

    def _check_attempts(self):
        """Find running attempts whose job was cancelled, recovered or ended by somebody else."""
        attempts = {a.claim.id: a for a in self._worker.pool.running() if a.duration > CHECK_ATTEMPTS_SECONDS}
        if not attempts:
            return
        with self._connection.transaction() as cr:
            states = queries.attempt_states(cr, {job_id: a.claim.claim_seq for job_id, a in attempts.items()})
        for job_id, attempt in attempts.items():
            reason = LOST if job_id not in states else CANCEL if states[job_id] else None
            if reason and not attempt.reason:
                events.attempt_interrupted(attempt.claim, reason)
                attempt.interrupt(reason)

    def _beat(self):
        worker = self._worker
        memory = self._process.memory_info().rss // 2**20
        with self._connection.transaction() as cr:
            pause_requested = queries.beat(cr, worker.name, worker.state, len(worker.pool.running()), memory)
        worker.on_beat(pause_requested)
