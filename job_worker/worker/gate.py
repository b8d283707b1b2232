"""The upgrade gate: whether a worker may work on its database as it is, and if not, why.

Old code must not run new jobs, nor new code on an old schema, and a registry that is loaded while modules are to be
changed changes them. So before it loads a registry, the worker looks at the modules, on a connection of its own; claims
compare that the modules are still as they were then (:data:`~..queries.GATE_IS_CLOSED`), in the claim's own statement.
"""

import os
import sys
from pathlib import Path

from odoo import addons
from odoo.modules.module import Manifest
from odoo.modules.registry import Registry
from odoo.tools import str2bool
from psycopg2.errors import LockNotAvailable

from .. import queries
from .connection import Connection

SWITCH = "JOB_WORKER_UPGRADE_GATE"
MOST_NAMED = 10

NO_ADDON = "the addon job_worker is not installed"
CHANGING = "modules are being installed or upgraded"
PARTIALLY_UPDATED = "the database is partially updated; Odoo's server goes on with that when it starts"

# What this process has imported, by the fork too that made it: the version of each module, the state of each file then,
# and for which modules of each database, see Gate.modules; and where each database was then.
_versions = {}
_files = {}
_loaded_for = {}
_loaded_from = {}


class Gate:
    """Watches over one database for one worker.

    :param str db_name: database
    """

    def __init__(self, db_name):
        self._db_name = db_name
        self._enabled = str2bool(os.environ.get(SWITCH, ""), True)
        self.connection = Connection(db_name, session=False)
        self.modules = None
        self.has_addon = True
        self.has_new_code = False
        _note_code()

    @property
    def expected(self):
        """What claims compare the modules with, ``None`` for nothing."""
        return self.modules if self._enabled else None

    def why_closed(self):
        """Look at the database.

        Sets ``has_addon``; ``has_new_code``: whether the code that this process has imported is old, and a new program
        would have newer one; and, if the gate is open, ``modules``, which stands for the modules as they are.

        :return: text for people, or ``None`` if the gate is open
        :raise psycopg2.Error: the database could not be asked
        """
        self.has_new_code = False
        try:
            with self.connection.transaction() as cr:
                return self._judge(cr)
        except LockNotAvailable:
            return CHANGING
        finally:
            self.connection.close()

    def load_registry(self, place):
        """Load the registry, after the gate was found open, or load it again if others have changed it.

        :param place: where the database is: what was loaded, and cached, for another one of its name is of no use
        :return: whether it was loaded again
        """
        replaced = not place.is_where(_loaded_from.get(self._db_name, place))
        if replaced:
            Registry.delete(self._db_name)
        _loaded_from[self._db_name] = place
        registry = Registry(self._db_name)
        newer = registry.check_signaling()
        _note_code()
        _loaded_for[self._db_name] = self.modules
        return replaced or newer is not registry

    def _judge(self, cr):
        self.has_addon = queries.addon_is_installed(cr)
        if not self.has_addon:
            return NO_ADDON
        modules, partially_updated, nobody_loads, rows = queries.gate_state(cr)
        pending = [f"{name} ({state})" for name, state, _version in rows if state != "installed"]
        if self._enabled and (reason := _why_changing(pending, partially_updated, nobody_loads)):
            return reason
        wanted = {name: version for name, _state, version in rows if version}
        reason = _why_other_code(wanted) if self._enabled else None
        self.has_new_code = self._is_old(modules, reason, wanted)
        if not reason:
            self.modules = modules
        return reason

    def _is_old(self, modules, other_code, wanted):
        """Whether a new program would have newer code than this process, and could work with it."""
        changed = _loaded_for.get(self._db_name, modules) != modules
        if other_code:
            # after an upgrade, a new program may find the addons at another place
            return changed or _is_on_disk(wanted)
        return changed and _has_old_files() and (_is_on_disk(wanted) or not self._enabled)


def _why_changing(pending, partially_updated, nobody_loads):
    if not nobody_loads:
        return CHANGING
    if pending:
        return f"modules are to be installed, upgraded or removed: {_few(pending)}"
    return PARTIALLY_UPDATED if partially_updated else None


def _why_other_code(wanted):
    """Compare the code of this process, or what it would import, with the versions of the database."""
    versions = [(name, _versions.get(name) or _version_on_disk(name)) for name in wanted]
    others = [
        f"{name} ({version or 'no code'}, database: {wanted[name]})"
        for name, version in versions
        if version != wanted[name]
    ]
    return f"the code is not of the version of the database: {_few(others)}" if others else None


def _note_code():
    """Note what was imported since the last call; versions as Odoo read them for that."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("odoo.addons."):
            continue
        if (file := getattr(module, "__file__", None)) and file not in _files:
            _files[file] = _state_of_file(file)
        addon = name.removeprefix("odoo.addons.")
        if (
            "." not in addon
            and addon not in _versions
            and (manifest := Manifest.for_addon(addon, display_warning=False))
        ):
            _versions[addon] = manifest.version


def _has_old_files():
    return any(_state_of_file(file) != state for file, state in _files.items())


def _state_of_file(file):
    try:
        state = Path(file).stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def _version_on_disk(module):
    """The version of the code that a new program would import; ``None`` if there is none."""
    for folder in addons.__path__:  # Odoo's own look-up remembers for ever
        if manifest := Manifest._from_path(str(Path(folder, module))):
            return manifest.version
    return None


def _is_on_disk(wanted):
    return all(_version_on_disk(name) == version for name, version in wanted.items())


def _few(names):
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
