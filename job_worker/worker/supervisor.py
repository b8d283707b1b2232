"""The parent of the worker processes: starts and replaces them, passes signals on, holds no database connection."""

import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
import uuid
from dataclasses import dataclass, field

import psutil
from odoo import sql_db
from odoo.modules.registry import Registry
from odoo.tools import config

from . import events
from .runner import QueueJobRunner

CODE_CHANGED_EXIT = 3
DRAINING_VARIABLE = "JOB_WORKER_DRAINING"
TICK_SECONDS = 0.25
QUICK_DEATH_SECONDS = 10.0
FIRST_RESTART_WAIT_SECONDS = 0.25
LONGEST_RESTART_WAIT_SECONDS = 30.0
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}


@dataclass
class Seat:
    """The place of one process; a new process takes it when the one in it ends."""

    pid: int = 0
    name: str = ""
    began: float = 0.0
    predecessors: list = field(default_factory=list)
    quick_deaths: int = 0
    not_before: float = 0.0


@dataclass
class Supervisor:
    """Keeps worker processes alive.

    :param Options options: how they are to run
    :param int processes: how many
    """

    options: object
    processes: int
    _seats: list = field(default_factory=list)
    _draining: dict = field(default_factory=dict)
    _stops: int = 0

    def run(self):
        """Run until SIGTERM or SIGINT; a second one stops at once.

        :return: exit status
        """
        self._draining = {int(pid): None for pid in os.environ.pop(DRAINING_VARIABLE, "").split(",") if pid}
        self._seats = [Seat() for _seat in range(self.processes)]
        self._recycle_receiver, self._recycle_sender = os.pipe()
        os.set_blocking(self._recycle_receiver, False)
        self._preload()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        while not self._stops or self._pids():
            if not self._stops:
                self._fill_seats()
            time.sleep(TICK_SECONDS)
            # Signals are blocked and asked for. Not with sigtimedwait(): in a process that was stopped and continued it
            # may return one that never came.
            while pending := signal.sigpending() & SIGNALS:
                self._on_signal(signal.sigwait(pending))
            self._reap()
            self._read_recycling()
            self._enforce_memory()
        return 0

    def _preload(self):
        """Load registries before forking, so that the processes share their memory. A signal to stop ends that too."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_signal: sys.exit(0))
        signal.pthread_sigmask(signal.SIG_SETMASK, SIGNALS - {signal.SIGTERM, signal.SIGINT})
        try:
            preload(self.options.databases)
        except SystemExit:
            self._stops += 1

    def _pids(self):
        return [seat.pid for seat in self._seats if seat.pid] + list(self._draining)

    def _on_signal(self, number):
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stops += 1
        for pid in self._pids():
            os.kill(pid, signal.SIGTERM if number == signal.SIGINT else number)

    # --- starting ----------------------------------------------------------------------------------------------------

    def _fill_seats(self):
        for seat in self._seats:
            if not seat.pid and time.monotonic() >= seat.not_before:
                self._start(seat)

    def _start(self, seat):
        sql_db.close_all()
        token = uuid.uuid4().hex[:8]
        seat.began = time.monotonic()
        seat.pid = os.fork()
        if not seat.pid:
            self._be_worker(f"{socket.gethostname()}-{os.getpid()}-{token}", seat.predecessors)
        seat.name = f"{socket.gethostname()}-{seat.pid}-{token}"
        seat.predecessors = []
        events.process_started(seat.pid, self._seats.index(seat) + 1)

    def _be_worker(self, name, predecessors):
        """The life of a worker process; does not return."""
        status = 1
        try:
            os.setpgrp()  # Ctrl-C in a terminal reaches the supervisor alone
            runner = QueueJobRunner(
                self.options, name=name, predecessors=predecessors, on_recycle=self._ask_to_be_replaced
            )
            runner.handle_signals()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            if limit := config["limit_memory_hard"]:
                # Not of the address space, as Odoo does: there every thread takes more than it will ever use.
                resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
            runner.run()
            status = CODE_CHANGED_EXIT if runner.code_changed else 0
        except BaseException as error:
            events.unexpected("worker process", error)
        finally:
            logging.shutdown()
            os._exit(status)  # threads that can't be interrupted would hold up an orderly exit

    def _ask_to_be_replaced(self, _reason):
        """In a worker process: have another one started while this one finishes its jobs."""
        os.write(self._recycle_sender, f"{os.getpid()}\n".encode())

    # --- replacing ---------------------------------------------------------------------------------------------------

    def _read_recycling(self):
        try:
            leaving = {int(pid) for pid in os.read(self._recycle_receiver, 4096).split()}
        except BlockingIOError:
            return
        for seat in self._seats:
            if seat.pid in leaving:
                self._draining[seat.pid] = seat.name
                seat.pid = 0

    def _reap(self):
        code_changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            code = os.waitstatus_to_exitcode(status)
            # one that was started before this program was: it was told to leave because of the same change
            inherited = self._draining.get(pid, "") is None
            code_changed |= code == CODE_CHANGED_EXIT and not inherited
            self._vacate(pid, code)
        if code_changed and not self._stops:
            self._start_anew()

    def _vacate(self, pid, code):
        """Make room for the successor of a process that ended."""
        name = self._draining.pop(pid, None)
        seat = next((seat for seat in self._seats if pid == seat.pid), None)
        if seat is not None:
            name, seat.pid = seat.name, 0
            quick = time.monotonic() - seat.began < QUICK_DEATH_SECONDS
            seat.quick_deaths = seat.quick_deaths + 1 if quick and code else 0
        if code in (0, CODE_CHANGED_EXIT) or name is None:
            return
        heir = seat or self._seats[0]
        heir.predecessors.append((name, describe_exit(code)))
        wait = 0.0
        if heir.quick_deaths:
            wait = min(FIRST_RESTART_WAIT_SECONDS * 2 ** (heir.quick_deaths - 1), LONGEST_RESTART_WAIT_SECONDS)
        heir.not_before = time.monotonic() + wait
        events.process_ended(pid, describe_exit(code), wait)

    def _start_anew(self):
        """Load the code of upgraded modules: a new program in this process, while the old workers finish their jobs."""
        events.supervisor_reexecuted()
        for pid in self._pids():
            os.kill(pid, signal.SIGHUP)
        os.environ[DRAINING_VARIABLE] = ",".join(map(str, self._pids()))
        logging.shutdown()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    def _enforce_memory(self):
        limit = config["limit_memory_hard"]
        for pid in self._pids() if limit else ():
            try:
                memory = psutil.Process(pid).memory_info().rss
            except psutil.NoSuchProcess:
                continue
            if memory > limit:
                events.process_killed(pid, f"memory {memory // 2**20} MiB over limit_memory_hard {limit // 2**20} MiB")
                os.kill(pid, signal.SIGKILL)


def preload(databases):
    """Load registries before forking, so that the processes share their memory."""
    for db_name in databases:
        try:
            Registry(db_name)
        except Exception as error:
            events.unexpected(f"registry of {db_name}", error)
    gc.collect()
    gc.freeze()  # what is loaded by now stays: the workers' collections need not walk it, nor copy its pages


def describe_exit(code):
    """What an exit code tells people: ``killed by SIGKILL``, ``exit code 1``."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    return f"its process was killed by {signal.Signals(-code).name}"
