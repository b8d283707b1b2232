"""Ends of attempts that could not be written at once: each is tried again by itself until it is."""

import threading
import time
from dataclasses import dataclass, field

from ..database_errors import is_passing, is_trouble
from . import events, obstacles, recovery
from .connection import Backoff

LONGEST_WAIT_SECONDS = 60.0


@dataclass(eq=False)
class End:
    """How an attempt is to end.

    :param claim: has ``id`` and ``claim_seq``
    :param write: called with a cursor of a transaction; whether the job has ended by it, so that the jobs after it are
        to be settled. ``None`` while that is not decided
    """

    claim: object
    write: object = None
    not_before: float = 0.0
    quiet_until: float = 0.0
    waits: Backoff = field(default_factory=lambda: Backoff(LONGEST_WAIT_SECONDS))


class UnwrittenEnds:
    """The ends that one worker owes. For several threads, but for :meth:`write`."""

    def __init__(self):
        self._ends = []
        self._lock = threading.Lock()

    def add(self, claim, write=None):
        """Take over the end of an attempt.

        :rtype: End
        """
        end = End(claim, write)
        with self._lock:
            self._ends.append(end)
        return end

    def remove(self, end):
        with self._lock:
            self._ends.remove(end)

    def claims(self):
        """Claims of the attempts: ``{job id: claim_seq}``."""
        with self._lock:
            return {end.claim.id: end.claim.claim_seq for end in self._ends}

    def flush(self, connection):
        """Write what is due. After one that can't be written the others wait for the next call, so that none holds up
        the calling thread for long.

        :param connection: :class:`~.connection.Connection`
        :raise psycopg2.Error: the database is in trouble, or the jobs after one that has ended can't be settled
        """
        now = time.monotonic()
        with self._lock:
            due = [end for end in self._ends if end.write and end.not_before <= now]
        for end in sorted(due, key=lambda end: end.not_before):
            try:
                with connection.transaction() as cr:
                    ended = end.write(cr)
            except Exception as error:
                if is_trouble(error):
                    raise
                self._put_off(end, error)
                return
            self.remove(end)
            if ended:
                recovery.settle_children(connection, [end.claim.id])

    def _put_off(self, end, error):
        now = time.monotonic()
        end.not_before = now + end.waits.next_wait()
        if is_passing(error) and not end.quiet_until:  # somebody was in the way: told if it stays so
            end.quiet_until = now + obstacles.REPEAT_SECONDS
        elif now >= end.quiet_until:
            end.quiet_until = now + obstacles.REPEAT_SECONDS
            events.end_not_written(end.claim, error)
