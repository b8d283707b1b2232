"""The slots of a worker: threads that run what was claimed, in the order it was claimed.

**Running alone.** What kills a process takes along all that runs there, and from outside nothing tells which job it
was. So a job whose last attempt died with its worker gets the process to itself, over all databases that it serves: the
pool that was handed such a job owns the process until the job has ended. The others begin nothing, claim nothing and
give back what they have; when nothing is left of theirs, the job begins. Whatever dies with it then is its own doing.
"""

import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import replace

from .attempt import Attempt
from .connection import scarcity

_SHORT_JOB_SECONDS = 0.1
_LOOKAHEAD_SECONDS = 0.05
_MAX_LOOKAHEAD = 64
_AVERAGE_WEIGHT = 0.1
RELEASE_AFTER_SECONDS = 20.0
SCARCE_RELEASE_AFTER_SECONDS = 1.0


class _Process:
    """The pools of this process.

    :ivar lock: guards the pools as well, so that none changes while another looks whether all are empty
    :ivar pools: those that were started and not closed
    :ivar owner: the pool with a job that is to run alone, ``None`` while jobs run side by side
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.pools = set()
        self.owner = None

    def change_owner(self, pool):
        self.owner = pool
        for other in self.pools:
            other.look_again()


_PROCESS = _Process()


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
        self._changed = threading.Condition(_PROCESS.lock)
        self._claiming = False
        self._closed = False
        self._average = None
        self._threads = 0
        self.ended = 0

    def start(self):
        with self._changed:
            _PROCESS.pools.add(self)
        for _slot in range(self.slots):
            self._start_thread()

    def _start_thread(self):
        self._threads += 1
        thread = threading.Thread(target=self._work, name=f"job_worker.slot.{self._threads}", daemon=True)
        thread.start()

    @contextmanager
    def claiming(self):
        """To claim within: no job begins to run alone meanwhile.

        :return: ``(free, count)``: jobs that a thread waits for, and those worth claiming altogether; ``count`` goes
            beyond ``free`` while jobs prove short
        """
        with self._changed:
            free, count = self._demand()
            self._claiming = count > 0
        try:
            yield free, count
        finally:
            with self._changed:
                self._claiming = False
                self._settle()

    def _demand(self):
        if _PROCESS.owner:
            return 0, 0
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

    @property
    def has_next(self):
        """Whether a thread that is done has another job to begin at once."""
        return bool(self._waiting) and not _PROCESS.owner

    def admit(self, claims):
        """Which of these claims can be submitted: of those that are to run alone the first, and nothing behind it.

        The others are to go back before: if they still were this worker's when that job takes the process along, they
        would count as begun.

        :return: ``(claims to submit, claims to give back)``
        """
        with self._changed:
            if _PROCESS.owner:  # since the claim began
                return [], claims
            place = next((place for place, claim in enumerate(claims) if claim.runs_alone), None)
            if place is None:
                return claims, []
            _PROCESS.change_owner(self)
            return claims[: place + 1], claims[place + 1 :]

    def submit(self, claims):
        """Let threads run what :meth:`admit` lets in."""
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
            return {claim.id: claim.claim_seq for claim in self._held()}

    def take_waiting(self, longer_than=None, worse_than=None):
        """Take back what no thread has begun.

        :param float longer_than: only if all threads are busy with jobs they began that many seconds ago
        :param int worse_than: only jobs of a worse priority
        """
        with self._changed:
            held_up = _PROCESS.owner not in (None, self)
            if (
                longer_than is not None
                and not held_up
                and (
                    len(self._running) < self.slots
                    or any(attempt.duration < longer_than for attempt in self._running.values())
                )
            ):
                return []
            taken, kept = [], deque()
            for claim in self._waiting:
                (taken if worse_than is None or claim.priority > worse_than else kept).append(claim)
            self._waiting = kept
            self._settle()
            return taken

    def take_put_off(self):
        """Take back a job that is to run alone, if what runs beside it lets it wait for long: others must go on, too.

        It waits for as long as it is since its worker died: longer each time, so that its turn comes beside jobs of any
        length.

        :return: its claim, or ``None``
        """
        with self._changed:
            if _PROCESS.owner is not self or not self._waiting or not (claim := self._waiting[-1]).runs_alone:
                return None
            if time.monotonic() - claim.claimed_at < claim.died_ago:
                return None
            self._waiting.pop()
            self._settle()
            return claim

    def expect_children(self, job_ids):
        """Note that jobs have come to wait for some of what was claimed."""
        with self._changed:
            for attempt in self._running.values():
                attempt.has_children |= attempt.claim.id in job_ids
            self._waiting = deque(
                replace(claim, has_children=True) if claim.id in job_ids else claim for claim in self._waiting
            )

    def abandon(self, attempt):
        """Give up on the thread of an attempt and start another in its place.

        :return: ``False`` if the thread is ending the attempt by itself
        """
        with self._changed:
            if not attempt.abandon():
                return False
            self._running = {thread: other for thread, other in self._running.items() if other is not attempt}
            self._settle()
            self._start_thread()
            return True

    def close(self):
        """Let the threads end once nothing is left to run."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            _PROCESS.pools.discard(self)
            if _PROCESS.owner is self:
                _PROCESS.change_owner(None)

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
                self._settle()
                self.ended += 1
                duration = attempt.duration
                previous = duration if self._average is None else self._average
                self._average = previous + _AVERAGE_WEIGHT * (duration - previous)
                self._changed.notify_all()
                idle = len(self._waiting) <= self._lookahead() // 2
            del attempt  # with its arguments, which the wait for the next one would keep
            if idle:
                self._on_idle()
        self._release()

    def _next(self, me):
        with self._changed:
            while not self._changed.wait_for(
                lambda: self._begin(me) or (self._closed and not self._waiting),
                SCARCE_RELEASE_AFTER_SECONDS if scarcity else RELEASE_AFTER_SECONDS,
            ):
                self._release()
            return self._running.get(me)

    def _begin(self, me):
        """Give a thread the next job, if that may begin now."""
        if not self._waiting or not self._may_begin(self._waiting[0]):
            return False
        self._running[me] = Attempt(self._waiting.popleft())
        return True

    def _may_begin(self, claim):
        owner = _PROCESS.owner
        if not claim.runs_alone:
            return owner in (None, self)
        others = _PROCESS.pools - {self}
        return not self._running and not any(pool._waiting or pool._running or pool._claiming for pool in others)

    def _settle(self):
        """After something has left the pool: let others go on, or the job begin that waits for all to be gone."""
        owner = _PROCESS.owner
        if owner is self and not self._claiming and not any(claim.runs_alone for claim in self._held()):
            _PROCESS.change_owner(None)
        elif owner:
            owner.look_again()

    def _held(self):
        return [*self._waiting, *(attempt.claim for attempt in self._running.values())]

    def look_again(self):
        """Somewhere in the process something has changed that decides what may begin or be claimed here."""
        self._changed.notify_all()
        self._on_idle()
