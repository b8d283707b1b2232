"""The slots of a worker: threads that run what was claimed, in the order it was claimed."""

import threading
from collections import deque

from .attempt import Attempt

_SHORT_JOB_SECONDS = 0.1
_LOOKAHEAD_SECONDS = 0.05
_MAX_LOOKAHEAD = 64
_AVERAGE_WEIGHT = 0.1
RELEASE_AFTER_SECONDS = 20.0


class Pool:
    """Threads and the claims that wait for them.

    :param int slots: jobs that run at once
    :param run: called on a thread with each :class:`~.attempt.Attempt`
    :param on_idle: called when a thread can take more than is waiting
    :param release: called on a thread that had nothing to do for a while, or ends
    :ivar ended: attempts that came to an end
    """

    def __init__(self, slots, run, on_idle, release):
        self.slots = slots
        self._run = run
        self._on_idle = on_idle
        self._release = release
        self._waiting = deque()
        self._running = {}
        self._changed = threading.Condition()
        self._closed = False
        self._average = None
        self._threads = 0
        self.ended = 0

    def start(self):
        for _slot in range(self.slots):
            self._start_thread()

    def _start_thread(self):
        self._threads += 1
        thread = threading.Thread(target=self._work, name=f"job_worker.slot.{self._threads}", daemon=True)
        thread.start()

    def demand(self):
        """How much to claim now.

        :return: ``(free, count)``: jobs that a thread waits for, and those worth claiming altogether; ``count`` goes
            beyond ``free`` while jobs prove short
        """
        with self._changed:
            free = max(self.slots - len(self._running) - len(self._waiting), 0)
            ahead = self._lookahead()
            if not free and len(self._waiting) > ahead // 2:
                return 0, 0
            return free, max(free + ahead - len(self._waiting), 0)

    def _lookahead(self):
        if self._average is None or self._average > _SHORT_JOB_SECONDS:
            return 0
        # A thread with a job that did not prove short will not be back soon.
        quick = self.slots - sum(attempt.duration > _SHORT_JOB_SECONDS for attempt in self._running.values())
        return min(int(quick * _LOOKAHEAD_SECONDS / max(self._average, 1e-4)), _MAX_LOOKAHEAD)

    @property
    def has_waiting(self):
        return bool(self._waiting)

    def submit(self, claims):
        with self._changed:
            self._waiting.extend(claims)
            self._changed.notify(len(claims))

    def running(self):
        """The attempts that threads work on."""
        with self._changed:
            return list(self._running.values())

    def claims(self):
        """All that was claimed and has not ended: ``{job id: claim_seq}``."""
        with self._changed:
            known = {claim.id: claim.claim_seq for claim in self._waiting}
            known.update((attempt.claim.id, attempt.claim.claim_seq) for attempt in self._running.values())
            return known

    def take_waiting(self, longer_than=None, worse_than=None):
        """Take back what no thread has begun.

        :param float longer_than: only if all threads are busy with jobs they began that many seconds ago
        :param int worse_than: only jobs of a worse priority
        """
        with self._changed:
            if longer_than is not None and (
                len(self._running) < self.slots
                or any(attempt.duration < longer_than for attempt in self._running.values())
            ):
                return []
            taken, kept = [], deque()
            for claim in self._waiting:
                (taken if worse_than is None or claim.priority > worse_than else kept).append(claim)
            self._waiting = kept
            return taken

    def abandon(self, attempt):
        """Give up on the thread of an attempt and start another in its place.

        :return: ``False`` if the thread is ending the attempt by itself
        """
        with self._changed:
            if not attempt.abandon():
                return False
            self._running = {thread: other for thread, other in self._running.items() if other is not attempt}
            self._start_thread()
            return True

    def close(self):
        """Let the threads end once nothing is left to run."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_until_empty(self, timeout):
        """Wait until nothing runs or waits.

        :param float timeout: seconds
        :return: whether that is so
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._running and not self._waiting, timeout)

    def _work(self):
        me = threading.get_ident()
        while attempt := self._next(me):
            self._run(attempt)
            with self._changed:
                if attempt.abandoned:
                    break
                del self._running[me]
                self.ended += 1
                duration = attempt.duration
                previous = duration if self._average is None else self._average
                self._average = previous + _AVERAGE_WEIGHT * (duration - previous)
                self._changed.notify_all()
                idle = len(self._waiting) <= self._lookahead() // 2
            if idle:
                self._on_idle()
        self._release()

    def _next(self, me):
        with self._changed:
            while not self._changed.wait_for(lambda: self._waiting or self._closed, RELEASE_AFTER_SECONDS):
                self._release()
            if not self._waiting:
                return None
            self._running[me] = attempt = Attempt(self._waiting.popleft())
            return attempt
