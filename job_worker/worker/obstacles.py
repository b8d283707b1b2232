"""Why a worker claims nothing, and what people are told about it."""

import time

PAUSED = "paused"
BLOCKED = "blocked"
TROUBLE = "trouble"
REPEAT_SECONDS = 60.0
# The worst first; what somebody asked for is not repeated.
_STATES = (TROUBLE, BLOCKED, PAUSED)
_REPEATED = {TROUBLE, BLOCKED}


class Obstacles:
    """What keeps a worker from claiming: at most one reason for each state of ``queue.worker`` that says so.

    :data:`PAUSED`: somebody asked for it; :data:`BLOCKED`: the database is not to be worked on for now;
    :data:`TROUBLE`: something is wrong with the worker or its database.
    """

    def __init__(self):
        self._reasons = {}
        self._logged_at = {}

    def __bool__(self):
        return bool(self._reasons)

    @property
    def state(self):
        """The worst of them, as ``queue.worker`` has it; ``None`` without any."""
        return next((state for state in _STATES if state in self._reasons), None)

    @property
    def reason(self):
        """Text of the worst of them; ``None`` without any."""
        return self._reasons.get(self.state)

    def report(self, state, reason):
        """Note an obstacle, or that it is still there.

        :return: whether to log it: it is new, its reason changed, or it has lasted for another minute
        """
        reasons, now = self._reasons, time.monotonic()
        known = reasons.get(state) == reason
        self._reasons = {**reasons, state: reason}  # replaced, not changed: the monitor's thread reads it
        if known and (state not in _REPEATED or now < self._logged_at[state] + REPEAT_SECONDS):
            return False
        self._logged_at[state] = now
        return True

    def clear(self, state):
        """Forget an obstacle.

        :return: whether it was there
        """
        reasons = self._reasons
        self._reasons = {other: reason for other, reason in reasons.items() if other != state}
        return state in reasons
