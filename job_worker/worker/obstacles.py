"""Why a worker claims nothing, or does not work as it should, and what people are told about it."""

import threading
import time

PAUSED = "paused"
BLOCKED = "blocked"
TROUBLE = "trouble"
REPEAT_SECONDS = 60.0
# The worst first; what somebody asked for is not repeated.
_STATES = (TROUBLE, BLOCKED, PAUSED)
_REPEATED = {TROUBLE, BLOCKED}


class Obstacles:
    """What keeps a worker from its work: for each state of ``queue.worker`` that says so, at most one reason a subject.

    :data:`PAUSED`: somebody asked for it; :data:`BLOCKED`: the database is not to be worked on for now;
    :data:`TROUBLE`: something is wrong with the worker or its database. For several threads.
    """

    def __init__(self):
        self._reasons = {}
        self._since = {}
        self._logged = {}
        self._lock = threading.Lock()

    def __bool__(self):
        return bool(self._reasons)

    @property
    def state(self):
        """The worst of them, as ``queue.worker`` has it; ``None`` without any."""
        return self._worst()[0]

    @property
    def reason(self):
        """Text of the worst of them; ``None`` without any."""
        return self._worst()[1]

    def _worst(self):
        reasons = self._reasons
        worst = min(reasons, key=lambda key: _STATES.index(key[0]), default=None)
        return (worst[0], reasons[worst]) if worst else (None, None)

    def report(self, state, reason, about=None, kind=None, patience=0.0):
        """Note an obstacle, or that it is still there.

        :param about: what it is about, where a state may have several
        :param kind: tells it from another one about the same; by default the reason
        :param float patience: seconds that it has to last to count
        :return: whether to log it: it is new, of another kind, or it has lasted for another minute
        """
        kind, key, now = kind or reason, (state, about), time.monotonic()
        with self._lock:
            if now < self._since.setdefault(key, now) + patience:
                return False
            known, logged_at = self._logged.get(key, (None, now))
            self._reasons = {**self._reasons, key: reason}  # replaced, not changed: it is read without the lock
            if known == kind and (state not in _REPEATED or now < logged_at + REPEAT_SECONDS):
                return False
            self._logged[key] = kind, now
            return True

    def clear(self, state, about=None):
        """Forget an obstacle.

        :return: its kind, ``None`` if it was not there
        """
        key = state, about
        if key not in self._since:
            return None
        with self._lock:
            del self._since[key]
            self._reasons = {other: reason for other, reason in self._reasons.items() if other != key}
            return self._logged.pop(key, (None,))[0]
