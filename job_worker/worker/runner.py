"""What one worker process does: serve its databases, a thread and a :class:`QueueWorker` each."""

import os
import signal
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass

import psutil
import psycopg2
from odoo import http
from odoo.service.db import list_dbs
from odoo.tools import config

from .. import queries
from ..lifecycle import MAX_BACKOFF_SECONDS
from . import events
from .connection import Connection
from .queue_worker import QueueWorker

DISCOVER_SECONDS = 15.0
TICK_SECONDS = 0.5


@dataclass(frozen=True)
class Options:
    """How workers are to run; times in seconds. See :class:`QueueWorker` for what is not said here.

    :param databases: names, or empty for every database that has the addon
    :param max_jobs: attempts after which a process is replaced, 0 for no limit
    :param max_age: seconds after which a process is replaced, 0 for no limit
    """

    databases: tuple = ()
    concurrency: int = 2
    poll_timeout: float = 5
    stale_after_seconds: float = 60
    heartbeat_interval_seconds: float = 15
    max_backoff_seconds: float = MAX_BACKOFF_SECONDS
    listen: bool = True
    shutdown_timeout: float | None = None
    max_jobs: int = 0
    max_age: float = 0

    def for_worker(self):
        """Those of the options that a :class:`QueueWorker` takes."""
        options = asdict(self)
        for name in ("databases", "max_jobs", "max_age"):
            del options[name]
        return options


class QueueJobRunner:
    """Serves several databases in this process; with no names given, every database that has the addon.

    New databases are picked up and removed ones dropped while it runs. Each database is served by a thread of its own,
    so that one in trouble does not hold up the others.

    :param Options options: see :class:`Options`
    :param str name: of the worker of the first database, made up by default; the others get names of their own
    :param predecessors: see :class:`QueueWorker`
    :param on_recycle: called with a reason when the process should be replaced; by default it goes on
    """

    def __init__(self, options=None, *, name=None, predecessors=(), on_recycle=None):
        self._options = options or Options(concurrency=default_concurrency())
        self._name = name
        self._predecessors = predecessors
        self._on_recycle = on_recycle
        self._serving = {}
        self._leaving = []
        self._signals = deque()
        self._paused = False
        self._stopping = False
        self._stop_asked = 0
        self._recycling = False
        self._code_changed = False
        self._began = time.monotonic()
        self._next_discovery = 0.0
        self._found = None
        self._process = psutil.Process()
        self._parent_pid = os.getppid()

    @property
    def code_changed(self):
        """Whether modules were installed or upgraded, so that this process may run old code."""
        return self._code_changed

    def run(self):
        """Serve until :meth:`stop`."""
        for db_name in self._options.databases:
            self._serve(db_name)
        while not self._stopping:
            if not self._options.databases:
                self._discover()
            if self._on_recycle:
                self._check_health()
            self._tick(None)
        for worker, _thread in self._all():
            worker.stop()
        for _worker, thread in self._all():
            while thread.is_alive():
                self._tick(thread)

    def stop(self):
        """Claim no more; :meth:`run` returns when the running jobs have finished. A second call interrupts them."""
        self._stop_asked += 1
        self._stopping = True
        for worker, _thread in self._all():
            if self._stop_asked > 1:
                worker.stop_now()
            else:
                worker.stop()

    def drain(self):
        """Like :meth:`stop`, but a call of that does not count as the second one after this."""
        self._stopping = True

    def pause(self, paused=True):
        """Claim no more until ``pause(False)``; running jobs go on."""
        self._paused = paused
        for worker, _thread in self._all():
            worker.pause(paused)

    def handle_signals(self):
        """SIGTERM and SIGINT stop, a second one at once; SIGUSR1 pauses, SIGUSR2 resumes; SIGHUP drains."""
        for number in self._signal_handlers():
            # Only noted here: what happens inside of a handler may wait for a lock that the interrupted code holds.
            signal.signal(number, lambda number, _frame: self._signals.append(number))

    def _signal_handlers(self):
        return {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGHUP: self.drain,
            signal.SIGUSR1: self.pause,
            signal.SIGUSR2: lambda: self.pause(False),
        }

    def _tick(self, thread):
        """Wait a little, for the end of ``thread`` if there is one; then act on the signals that came."""
        if thread:
            thread.join(TICK_SECONDS)
        elif not self._signals:
            time.sleep(TICK_SECONDS)
        while self._signals:
            self._signal_handlers()[self._signals.popleft()]()

    def _all(self):
        """The workers with their threads, also of databases that are left but still have running jobs."""
        return [*self._serving.values(), *self._leaving]

    def _discover(self):
        """Look around now and then, in a thread because a database may keep it waiting; follow what was found."""
        if time.monotonic() >= self._next_discovery:
            self._next_discovery = float("inf")
            threading.Thread(target=self._look_around, name="job_worker.discovery", daemon=True).start()
        if self._found is not None:
            found, self._found = self._found, None
            self._follow(found)

    def _look_around(self):
        try:
            self._found = databases_with_addon()
        finally:
            self._next_discovery = time.monotonic() + DISCOVER_SECONDS

    def _follow(self, found):
        """Serve the databases that have the addon, leave the others. One that could not be asked stays as it is."""
        self._leaving = [(worker, thread) for worker, thread in self._leaving if thread.is_alive()]
        for db_name, has_addon_now in found.items():
            if has_addon_now and db_name not in self._serving:
                events.database_added(db_name)
                self._serve(db_name)
        for db_name in [name for name in self._serving if found.get(name, False) is False]:
            worker, thread = self._serving.pop(db_name)
            events.database_dropped(db_name)
            worker.stop()
            self._leaving.append((worker, thread))

    def _serve(self, db_name):
        name, self._name = self._name, None
        worker = QueueWorker(
            db_name,
            **self._options.for_worker(),
            name=name,
            predecessors=self._predecessors,
            on_registry_changed=self._registry_changed if self._on_recycle else None,
            on_thread_abandoned=lambda: self._recycle("a job's thread could not be interrupted"),
        )
        worker.pause(self._paused)
        thread = threading.Thread(target=worker.run, name=f"job_worker.{db_name}", daemon=True)
        self._serving[db_name] = worker, thread
        thread.start()

    def _registry_changed(self):
        self._code_changed = True
        self._recycle("modules were installed or upgraded")

    def _recycle(self, reason):
        if self._on_recycle and not self._recycling:
            self._recycling = True
            events.process_recycled(reason)
            self._on_recycle(reason)
            self.drain()

    def _check_health(self):
        options = self._options
        memory = self._process.memory_info().rss
        ended = sum(worker.pool.ended for worker, _thread in self._serving.values())
        if 0 < config["limit_memory_soft"] < memory:
            self._recycle(f"memory is {memory // 2**20} MiB, limit_memory_soft {config['limit_memory_soft'] // 2**20}")
        elif 0 < options.max_jobs <= ended:
            self._recycle(f"{ended} jobs run")
        elif 0 < options.max_age <= time.monotonic() - self._began:
            self._recycle("age")
        elif os.getppid() != self._parent_pid:
            self._recycle("the supervisor is gone")


def default_concurrency():
    """``QUEUE_JOB_CONCURRENCY``, or 2."""
    value = os.environ.get("QUEUE_JOB_CONCURRENCY", "2")
    if not value.isdigit() or int(value) < 1:
        raise ValueError(f"QUEUE_JOB_CONCURRENCY must be a number from 1: {value!r}")
    return int(value)


def databases_with_addon():
    """Which of the databases that ``db_name`` and ``dbfilter`` allow have the addon installed.

    :return: ``{name: True, False or None where the database could not be asked}``; ``None`` if the server could not
    """
    try:
        names = config["db_name"] or http.db_filter(list_dbs(force=True), host="")
    except psycopg2.Error:
        return None
    return {name: has_addon(name) for name in names}


def has_addon(db_name):
    """Whether a database has the addon installed, ``None`` if it could not be asked."""
    # not through Odoo's pool: there, closing what a database leaves open closes what its jobs run on too
    connection = Connection(db_name, session=False)
    try:
        with connection.transaction() as cr:
            return queries.addon_is_installed(cr)
    except psycopg2.Error:
        return None
    finally:
        connection.close()
