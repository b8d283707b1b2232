"""Keeps a worker out of a database whose jobs belong to another one."""

import time

import psycopg2

from .. import home, queries
from ..home import Verdict
from .connection import Connection

SETTLE_SECONDS = 5.0
# Nobody needs to be asked.
_DECIDED = (Verdict.IDLE, Verdict.COPY)
REASONS = {
    Verdict.INCOMPLETE: "tables of job_worker or the system parameter database.uuid are missing: it is being created or"
    " restored, or the addon was removed",
    Verdict.IDLE: "it has just been copied or moved, and is still being worked on",
    Verdict.COPY: "it is a copy, and is still being worked on; then the jobs of the original will be cancelled in it",
    Verdict.UNCLEAR: "it was copied or moved, and its jobs may be running in the original: neutralize it, give it"
    " another database.uuid, or say on the dashboard of Background Jobs which it is",
}


class NotHomeError(psycopg2.OperationalError):
    """The database of this name has become another one. Like one that is away: to be asked again."""

    pgcode = "08003"  # connection does not exist


def require_home(cr):
    """Refuse a connection on which nothing may be done.

    :raise NotHomeError: the database is not the home of its queue
    """
    verdict = home.judge(cr)
    if verdict is not Verdict.HOME:
        raise NotHomeError(f"not the database that the worker has served: {verdict.value}")


class HomeCheck:
    """Asks, on a connection of its own, whether a worker may touch a database.

    Where nobody needs to be asked, it makes the database the home of its queue. Not before it has looked the same for
    :data:`SETTLE_SECONDS`, with nobody writing to it: Odoo makes a copy in one transaction and renews its uuid and
    neutralises it in a later one, which must not fail because of what we write.

    :param str db_name: database
    :ivar place: where the database is that was last found to be the home, see :class:`~..home.Place`
    """

    def __init__(self, db_name):
        self._connection = Connection(db_name, session=False)
        self._verdict = None
        self._since = 0.0
        self.place = None

    @property
    def is_settled(self):
        """Whether the last answer has been the same for some time."""
        return time.monotonic() - self._since >= SETTLE_SECONDS

    def obstacle(self):
        """Look, and decide what can be decided.

        :return: why the database is not to be touched, or ``None``
        :raise psycopg2.Error: it could not be asked
        """
        try:
            if self._look() in _DECIDED and self.is_settled:
                while self._leave_original():
                    pass
                self._look()
        finally:
            self._connection.close()
        return REASONS.get(self._verdict)

    def _look(self):
        with self._connection.transaction() as cr:
            verdict = home.judge(cr)
            if verdict in (Verdict.HOME, Verdict.NEW):
                home.settle_in(cr)
                verdict = Verdict.HOME
                self.place, _home = home.find(cr)
        if verdict is not self._verdict:
            self._verdict, self._since = verdict, time.monotonic()
        return verdict

    def _leave_original(self):
        """One step of it, in a transaction of its own; whether there is more to do."""
        with self._connection.transaction() as cr:
            queries.lock_home(cr)  # several processes come here at once
            if home.judge(cr) not in _DECIDED or queries.others_are_writing(cr):
                return False
            if home.disown(cr, copied_only=True):
                return True
            home.leave_original(cr)
            return False
