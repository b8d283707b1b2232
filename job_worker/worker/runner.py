"""What one worker process does: serve its databases, a thread and a :class:`QueueWorker` each."""

import os
import resource
import signal
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass

import psutil
import psycopg2
from odoo import http
from odoo.tools import config
from odoo.tools.misc import dumpstacks

from .. import queries
from ..lifecycle import MAX_BACKOFF_SECONDS, STALE_AFTER_SECONDS
from . import events
from .connection import Connection
from .obstacles import BLOCKED, TROUBLE, Obstacles
from .queue_worker import QueueWorker, derived_name, new_worker_name

STOP_NOW = signal.SIGURG
"""From the supervisor to its processes. Nobody else sends it: it is for sockets that asked for it, and ignored else."""
DISCOVER_SECONDS = 15.0
TICK_SECONDS = 0.5
# A process is not replaced for its memory if it has grown by less than this share of what it had without a job, and is
# younger than this: its successor would soon be where it is.
LEAST_GROWTH = 0.25
LEAST_LIFE_SECONDS = 600.0
THREADS_BESIDE_SLOTS = 3  # of a database: its loop, the two of its monitor
THREADS_BESIDE_DATABASES = 6  # the process's own, and some that come and go
DATA_SHARE = 0.85
DEFAULT_STACK = 8 * 2**20


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
    stale_after_seconds: float = STALE_AFTER_SECONDS
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
    :param str name: of the workers, made up by default; a second one in a database has one that begins with it
    :param deaths: called for the processes that are known to have died by now, as ``(name, what is known of its end)``
    :param paused: databases in which the process's predecessor was asked to pause
    :param report: called when the supervisor is to know something: ``"replace"`` if the process should be replaced,
        ``"code changed"`` if the program should, ``"paused"`` and ``"resumed"`` with the database where somebody asked
        for that; by default nobody replaces the process
    """

    def __init__(self, options=None, *, name=None, deaths=lambda: (), paused=(), report=None):
        self._options = options or Options(concurrency=default_concurrency())
        self._name = name or new_worker_name()
        self._deaths = deaths
        self._known_deaths = list(deaths())
        self._paused_databases = set(paused)
        self._report = report
        self._served = set()
        self._serving = {}
        self._leaving = []
        self._signals = deque()
        self._paused = False
        self._stopping = False
        self._recycling = False
        self._empty_memory = 0
        self._warned = False
        self._began = time.monotonic()
        self._next_discovery = 0.0
        self._found = None
        self._obstacles = Obstacles()
        self._process = psutil.Process()
        self._parent_pid = os.getppid()

    def run(self):
        """Serve until :meth:`stop`."""
        if not self._options.databases and filters_by_host():
            events.filter_ignored(config["dbfilter"])
        for db_name in self._options.databases:
            self._serve(db_name)
        while not self._stopping:
            if not self._options.databases:
                self._discover()
            if self._report:
                self._check_health()
            self._tick(None)
        for _worker, thread in self._all():
            while thread.is_alive():
                self._tick(thread)

    def stop(self):
        """Claim no more; :meth:`run` returns when the running jobs have finished."""
        self._stopping = True
        for worker, _thread in self._all():
            worker.stop()

    def stop_now(self):
        """Interrupt the running jobs and give them back uncounted; then :meth:`run` returns."""
        self._stopping = True
        for worker, _thread in self._all():
            worker.stop_now()

    def pause(self, paused=True):
        """Claim no more until ``pause(False)``; running jobs go on."""
        self._paused = paused
        for worker, _thread in self._all():
            worker.pause(paused)

    def handle_signals(self):
        """SIGTERM, SIGINT and SIGHUP stop, however many come; :data:`STOP_NOW` stops at once; SIGUSR1 pauses, SIGUSR2
        resumes; SIGQUIT logs what each thread is doing.
        """
        for number in self._signal_handlers():
            # Only noted here: what happens inside of a handler may wait for a lock that the interrupted code holds.
            signal.signal(number, lambda number, _frame: self._signals.append(number))

    def _signal_handlers(self):
        return {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGHUP: self.stop,
            STOP_NOW: self.stop_now,
            signal.SIGQUIT: dumpstacks,
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
        for death in self._deaths():
            if death not in self._known_deaths:
                self._known_deaths.append(death)
                for worker, _thread in self._all():
                    worker.bury(*death)

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
            found = databases_with_addon()
            failed = {name: error for name, error in found.items() if isinstance(error, Exception)}
            # the worker of a database that is served tells about that itself
            errors = [f"{name}: {events.error_line(failed[name])}" for name in failed.keys() - self._serving.keys()]
            self._note(TROUBLE, "; ".join(sorted(errors)))
            self._note(BLOCKED, "" if True in found.values() else f"none of {len(found)} has the addon job_worker")
            self._found = found
        except Exception as error:  # of the server, or of a filter that is no pattern
            self._note(TROUBLE, events.error_line(error))
        self._next_discovery = time.monotonic() + DISCOVER_SECONDS

    def _note(self, state, reason):
        """Tell about what is in the way of finding databases, again and again while it is, and when it is no more."""
        if reason and self._obstacles.report(state, reason):
            events.databases_not_found(reason)
        if not reason and self._obstacles.clear(state) and not self._obstacles:
            events.databases_found()

    def _follow(self, found):
        """Serve the databases that have the addon, leave the others. One that could not be asked stays as it is."""
        self._leaving = [(worker, thread) for worker, thread in self._leaving if thread.is_alive()]
        for db_name, has_addon_now in found.items():
            if has_addon_now is True and db_name not in self._serving:
                events.database_added(db_name)
                self._serve(db_name)
        for db_name in [name for name in self._serving if found.get(name, False) is False]:
            worker, thread = self._serving.pop(db_name)
            events.database_dropped(db_name)
            worker.stop()
            self._leaving.append((worker, thread))

    def _serve(self, db_name):
        # one that was left may still have jobs to finish under the name
        name = derived_name(self._name) if db_name in self._served else self._name
        self._served.add(db_name)
        worker = QueueWorker(
            db_name,
            **self._options.for_worker(),
            name=name,
            predecessors=self._known_deaths,
            pause_asked=db_name in self._paused_databases,
            on_pause_asked=self._pause_asked,
            on_ready=self._ready,
            on_code_changed=self._code_changed if self._report else None,
            on_thread_abandoned=lambda: self._recycle("a job's thread could not be interrupted"),
        )
        worker.pause(self._paused)
        thread = threading.Thread(target=worker.run, name=f"job_worker.{db_name}", daemon=True)
        self._serving[db_name] = worker, thread
        if self._report:
            self._limit_data()
        thread.start()

    def _pause_asked(self, db_name, paused):
        """Somebody asked the process to pause in a database, or to go on: its successor is to know that."""
        (self._paused_databases.add if paused else self._paused_databases.discard)(db_name)
        if self._report:
            self._report("paused" if paused else "resumed", db_name)

    def _code_changed(self):
        if not self._stopping:
            self._report("code changed")

    def _recycle(self, reason):
        """Ask for a successor, and go on until there is room for it or nothing is left to do."""
        if self._report and not self._recycling and not self._stopping:
            self._recycling = True
            events.process_recycled(reason)
            self._report("replace")

    def _check_health(self):
        self._limit_data()
        options, age = self._options, time.monotonic() - self._began
        ended = sum(worker.pool.ended for worker, _thread in self._serving.values())
        if os.getppid() != self._parent_pid:
            self._recycle("the supervisor is gone")
            self.stop()
        elif excess := self._excess_memory(ended, age):
            self._recycle(excess)
            self.stop()  # it must not take more
        elif self._recycling:
            if self._is_idle():
                self.stop()  # which takes no time, so its successor need not wait for room beside it
        elif 0 < options.max_jobs <= ended:
            self._recycle(f"{ended} jobs run")
        elif 0 < options.max_age <= age:
            self._recycle("age")

    def _ready(self):
        """A database is about to be served: what the process has by now it needs without any job."""
        self._empty_memory = max(self._empty_memory, self._memory())

    def _excess_memory(self, ended, age):
        """Why the process has too much memory, if it has."""
        memory, limit = self._memory(), config["limit_memory_soft"]
        if age < LEAST_LIFE_SECONDS and not all(worker.serving for worker, _thread in self._serving.values()):
            return None  # registries are being loaded, which takes memory without any job
        if self._is_idle():
            self._empty_memory = min(self._empty_memory or memory, memory)
        if not 0 < limit < memory:
            return None
        if self._empty_memory > limit and not self._warned:
            self._warned = True
            events.limit_too_low(self._empty_memory, limit)
        if memory > self._empty_memory * (1 + LEAST_GROWTH) or (age > LEAST_LIFE_SECONDS and ended):
            return f"memory is {memory // 2**20} MiB, limit_memory_soft {limit // 2**20}"
        return None

    def _limit_data(self):
        """Let who asks for more memory than ``limit_memory_hard`` get ``MemoryError``.

        Not by the address space, as Odoo does: there every thread takes more than it will ever use. What the system
        counts as data has the stacks of threads, each as large as it may become, so these come on top. The rest is a
        little less than what the process is killed for, where the pages of libraries count.
        """
        if not (limit := config["limit_memory_hard"]):
            return
        planned = len(self._all()) * (self._options.concurrency + THREADS_BESIDE_SLOTS)
        threads = max(planned, threading.active_count()) + THREADS_BESIDE_DATABASES
        stack = threading.stack_size() or resource.getrlimit(resource.RLIMIT_STACK)[0]
        data = int(limit * DATA_SHARE) + threads * (DEFAULT_STACK if stack == resource.RLIM_INFINITY else stack)
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (data if most == resource.RLIM_INFINITY else min(data, most), most))

    def _memory(self):
        return self._process.memory_info().rss

    def _is_idle(self):
        return not any(worker.pool.claims() for worker, _thread in self._all())


def default_concurrency():
    """``QUEUE_JOB_CONCURRENCY``, or 2."""
    value = os.environ.get("QUEUE_JOB_CONCURRENCY", "2")
    if not value.isdigit() or int(value) < 1:
        raise ValueError(f"QUEUE_JOB_CONCURRENCY must be a number from 1: {value!r}")
    return int(value)


def databases_with_addon():
    """Which of the databases that ``db_name`` and ``dbfilter`` allow have the addon installed.

    :return: ``{name: True, False or the error with which the database could not be asked}``
    :raise psycopg2.Error: the server could not be asked for its databases
    """
    return {name: _has_addon_or_error(name) for name in config["db_name"] or _databases()}


def filters_by_host():
    """Whether ``dbfilter`` means the host of a request, which a worker has none of."""
    return any(placeholder in (config["dbfilter"] or "") for placeholder in ("%d", "%h"))


def _databases():
    """The databases of the server that are Odoo's to serve."""
    connection = Connection("postgres", session=False)
    try:
        with connection.transaction() as cr:
            names = queries.own_databases(cr, {"postgres", config["db_template"]})
    finally:
        connection.close()
    return names if filters_by_host() else http.db_filter(names, host="")


def _has_addon_or_error(db_name):
    try:
        return has_addon(db_name)
    except psycopg2.Error as error:
        return error


def has_addon(db_name):
    """Whether a database has the addon installed.

    :raise psycopg2.Error: it could not be asked
    """
    # not through Odoo's pool: there, closing what a database leaves open closes what its jobs run on too
    connection = Connection(db_name, session=False)
    try:
        with connection.transaction() as cr:
            return queries.addon_is_installed(cr)
    finally:
        connection.close()
