"""Which database a queue is at home in. A copy of a database has the jobs of the original, and must not run them.

The home is the database that the jobs were stored in, by where it is and by what it is called. It is kept in a system
parameter, so every copy takes it along, and says another place than where it is found: ``CREATE DATABASE … TEMPLATE``
and a restore make a database of another ``oid`` or in another cluster, while a restart, a new name and a streaming
failover change neither.
"""

import enum
from dataclasses import dataclass, replace

from . import queries
from .lifecycle import move

BATCH = 5000
_UNKNOWN = "-"


class Verdict(enum.Enum):
    """What a database is to the queue found in it."""

    HOME = "the jobs were stored here"
    NEW = "nothing says where they were stored"
    INCOMPLETE = "tables or its uuid are missing: it is being created or restored, or has not got the addon"
    IDLE = "they were stored elsewhere, but none is left to run"
    COPY = "they were stored elsewhere, and this database has another database.uuid"
    UNCLEAR = "they were stored elsewhere, under the same database.uuid: it was copied or moved, only people can know"


HELD = (Verdict.COPY, Verdict.UNCLEAR)
"""The jobs may be those of another database."""


@dataclass(frozen=True)
class Place:
    """A database.

    :param str system: identifier of its cluster, or ``-`` where the role may not read it
    :param str oid: of the database in its cluster
    :param str uuid: system parameter ``database.uuid``
    """

    system: str
    oid: str
    uuid: str

    @classmethod
    def parse(cls, text):
        """From the value of the parameter; whatever else somebody wrote there is no place at all."""
        parts = text.split(" ", 2)
        return cls(*parts) if len(parts) == 3 and parts[1].isdecimal() else cls(_UNKNOWN, "", "")

    def __str__(self):
        return f"{self.system} {self.oid} {self.uuid}"

    def is_where(self, other):
        """Whether both are the same database, whatever it is called, as far as can be told."""
        return self.oid == other.oid and (self.system == other.system or _UNKNOWN in (self.system, other.system))


def find(cr):
    """Look where the cursor's database is, and where its queue is at home.

    :return: both places; ``None`` for the first where there is no ``database.uuid``, for the second where none is known
    """
    system, oid, uuid, home = queries.place_and_home(cr)
    here = uuid and Place(str(system or _UNKNOWN), str(oid), uuid)
    return here, home and Place.parse(home)


def judge(cr):
    """What the cursor's database is to its queue. Reads only.

    :rtype: Verdict
    """
    here, home = find(cr) if queries.is_complete(cr) else (None, None)
    if not here:
        return Verdict.INCOMPLETE
    if not home:
        return Verdict.NEW
    if home.is_where(here):
        return Verdict.HOME
    if not queries.has_unfinished_jobs(cr):
        return Verdict.IDLE
    return Verdict.COPY if home.uuid and home.uuid != here.uuid else Verdict.UNCLEAR


def begin(cr):
    """Where no home is known, make it the cursor's database."""
    here, home = find(cr)
    if here and not home:
        queries.write_home(cr, str(here))


def settle_in(cr):
    """Make the cursor's database the home of its queue, or note what it is called by now."""
    here, home = find(cr)
    if home and here.system == _UNKNOWN and home.is_where(here):
        here = replace(here, system=home.system)
    if here != home:
        queries.write_home(cr, str(here))


def disown(cr, *, copied_only):
    """Cancel some of the jobs that belong to the original, about :data:`BATCH`.

    :param bool copied_only: only those that were there before this database got its own ``database.uuid``, not all
    :return: whether there were any
    """
    ids = queries.unfinished_jobs(cr, BATCH, before_uuid=copied_only)
    return bool(ids and move(cr, "disown", ids))


def is_held(cr):
    """Whether the jobs in the cursor's database may be those of another one, so that no worker runs them."""
    return judge(cr) in HELD


def decide(cr, *, is_copy):
    """Say what nobody but people can know of a database that is held.

    :param bool is_copy: cancel the jobs, which belong to the original; else it was moved, and goes on with them
    """
    if not is_held(cr):
        return
    while is_copy and disown(cr, copied_only=False):
        pass
    if is_copy:
        leave_original(cr)
    else:
        settle_in(cr)


def leave_original(cr):
    """When no job of the original is left: forget its workers, and make this database the home."""
    queries.forget_workers(cr)
    settle_in(cr)
