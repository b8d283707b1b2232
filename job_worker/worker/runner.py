"""What one worker process does: serve its databases, a thread and a :class:`QueueWorker` each."""

import os
import signal
import threading
import time
from dataclasses import asdict, dataclass

import psutil
import psycopg2

from odoo import http, sql_db
from odoo.service.db import list_dbs
from odoo.tools import config

from .. import queries
from ..lifecycle import MAX_BACKOFF_SECONDS
from . import events
from .queue_worker import QueueWorker, new_worker_name

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
    :param predecessors: see :class:`QueueWorker`
    :param on_recycle: called with a reason when the process should be replaced; by default it goes on
    """

    def __init__(self, options=None, *, name=None, predecessors=(), on_recycle=None):
        self._options = options or Options(concurrency=default_concurrency())
        self._name = name or new_worker_name()
        self._predecessors = predecessors
        self._on_recycle = on_recycle
        self._serving = {}
        self._stop_event = threading.Event()
        self._recycling = False
        self._code_changed = False
        self._began = time.monotonic()
        self._next_discovery = 0.0
        self._process = psutil.Process()
        self._parent_pid = os.getppid()

    @property
    def code_changed(self):
        """Whether modules were installed or upgraded, so that this process may run old code."""
        return self._code_changed

    def run(self):
        """Serve until :meth:`stop`."""
        while not self._stop_event.wait(TICK_SECONDS if self._next_discovery else 0):
            if time.monotonic() >= self._next_discovery:
                self._next_discovery = time.monotonic() + DISCOVER_SECONDS
                self._discover()
            if self._on_recycle:
                self._check_health()
        for worker, _thread in self._serving.values():
            worker.stop()
        for _worker, thread in self._serving.values():
            thread.join()

    def stop(self, *_signal):
        """Claim no more; :meth:`run` returns when the running jobs have finished. A second call interrupts them."""
        again = self._stop_event.is_set()
        self._stop_event.set()
        for worker, _thread in self._serving.copy().values():
            if again:
                worker.stop_now()
            else:
                worker.stop()

    def pause(self, paused=True):
        """Claim no more until ``pause(False)``; running jobs go on."""
        for worker, _thread in self._serving.copy().values():
            worker.pause(paused)

    def handle_signals(self):
        """SIGTERM and SIGINT stop, a second one at once; SIGUSR1 pauses, SIGUSR2 resumes."""
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        signal.signal(signal.SIGUSR1, lambda *_signal: self.pause())
        signal.signal(signal.SIGUSR2, lambda *_signal: self.pause(False))

    def _discover(self):
        wanted = set(self._options.databases or databases_with_addon())
        for db_name in sorted(wanted - set(self._serving)):
            self._serve(db_name)
        for db_name in sorted(set(self._serving) - wanted):
            worker, thread = self._serving.pop(db_name)
            events.database_dropped(db_name)
            worker.stop()
            thread.join(TICK_SECONDS)

    def _serve(self, db_name):
        if not self._options.databases:
            events.database_added(db_name)
        worker = QueueWorker(
            db_name,
            **self._options.for_worker(),
            name=self._name,
            predecessors=self._predecessors,
            on_registry_changed=self._registry_changed if self._on_recycle else None,
            on_thread_abandoned=lambda: self._recycle("a job's thread could not be interrupted"),
        )
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
            self._stop_event.set()

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
    """Names of the databases that have the addon installed, as ``db_name`` and ``dbfilter`` allow."""
    try:
        names = config["db_name"] or http.db_filter(list_dbs(force=True), host="")
    except psycopg2.Error:
        return []
    return [name for name in names if has_addon(name)]


def has_addon(db_name):
    """Whether a database can be reached and has the addon installed."""
    try:
        with sql_db.db_connect(db_name).cursor() as cr:
            return queries.addon_is_installed(cr)
    except psycopg2.Error:
        return False
    finally:
        sql_db.close_db(db_name)
