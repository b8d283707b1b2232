"""The parent of the worker processes: starts and replaces them, passes signals on, holds no database connection."""

import contextlib
import gc
import logging
import mmap
import os
import resource
import signal
import socket
import sys
import threading
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
PAUSED_VARIABLE = "JOB_WORKER_PAUSED"
TICK_SECONDS = 0.25
PULSE_SECONDS = 0.5
SHORTEST_SILENCE_SECONDS = float(os.environ.get("JOB_WORKER_SHORTEST_SILENCE", "30"))
LAST_WAIT_SECONDS = 10.0
QUICK_DEATH_SECONDS = 10.0
FIRST_RESTART_WAIT_SECONDS = 0.25
LONGEST_RESTART_WAIT_SECONDS = 30.0
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}


@dataclass
class Child:
    """A worker process.

    :param int pid: its number
    :param str name: of its worker; ``None`` if it was started by a program that ran in this process before
    :param mmap.mmap pulse: memory shared with it, in which it counts for as long as its threads get to run; ``None`` as
        for the name
    """

    pid: int
    name: str | None = None
    pulse: mmap.mmap | None = None
    heard: int = 0
    silent_ticks: int = 0
    killed_for: str | None = None


@dataclass
class Seat:
    """The place of one process; a new process takes it when the one in it ends."""

    child: Child | None = None
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
    _ticks_in_a_hurry: int = 0
    _paused: bool = False

    def run(self):
        """Run until SIGTERM or SIGINT; a second one stops at once.

        :return: exit status
        """
        inherited = [int(pid) for pid in os.environ.pop(DRAINING_VARIABLE, "").split(",") if pid]
        self._draining = {pid: Child(pid) for pid in inherited}
        self._paused = bool(os.environ.pop(PAUSED_VARIABLE, ""))
        self._seats = [Seat() for _seat in range(self.processes)]
        self._recycle_receiver, self._recycle_sender = os.pipe()
        os.set_blocking(self._recycle_receiver, False)
        self._preload()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        while not self._stops or self._children():
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
            self._enforce_pulse()
            self._enforce_stop()
        return 0

    def _preload(self):
        """Load registries before forking, so that the processes share their memory. A signal to stop ends that too."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop_loading)
        with contextlib.suppress(SystemExit):
            # a signal that came while this program was imported comes here
            signal.pthread_sigmask(signal.SIG_SETMASK, SIGNALS - {signal.SIGTERM, signal.SIGINT})
            preload(self.options.databases)

    def _stop_loading(self, number, _frame):
        self._on_signal(number)
        if self._stops == 1:  # a second one may come when nothing is left to be ended
            sys.exit(0)

    def _children(self):
        return [seat.child for seat in self._seats if seat.child] + list(self._draining.values())

    def _on_signal(self, number):
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stops += 1
        else:
            self._paused = number == signal.SIGUSR1
        for child in self._children():
            os.kill(child.pid, signal.SIGTERM if number == signal.SIGINT else number)

    # --- starting ----------------------------------------------------------------------------------------------------

    def _fill_seats(self):
        for seat in self._seats:
            if not seat.child and time.monotonic() >= seat.not_before:
                self._start(seat)

    def _start(self, seat):
        sql_db.close_all()
        token = uuid.uuid4().hex[:8]
        pulse = mmap.mmap(-1, 1)
        seat.began = time.monotonic()
        pid = os.fork()
        if not pid:
            self._be_worker(f"{socket.gethostname()}-{os.getpid()}-{token}", seat.predecessors, pulse)
        seat.child = Child(pid, f"{socket.gethostname()}-{pid}-{token}", pulse)
        seat.predecessors = []
        events.process_started(pid, self._seats.index(seat) + 1)

    def _be_worker(self, name, predecessors, pulse):
        """The life of a worker process; does not return."""
        status = 1
        try:
            os.setpgrp()  # Ctrl-C in a terminal reaches the supervisor alone
            threading.Thread(target=keep_counting, args=(pulse,), name="job_worker.pulse", daemon=True).start()
            runner = QueueJobRunner(
                self.options, name=name, predecessors=predecessors, on_recycle=self._ask_to_be_replaced
            )
            runner.pause(self._paused)
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
            if seat.child and seat.child.pid in leaving:
                self._draining[seat.child.pid] = seat.child
                seat.child = None

    def _reap(self):
        code_changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            # one that is not its own was left to it by a process that ended, if it is the first of a container
            child = next((child for child in self._children() if child.pid == pid), Child(pid))
            code = os.waitstatus_to_exitcode(status)
            # one that was started before this program was: it was told to leave because of the same change
            code_changed |= code == CODE_CHANGED_EXIT and child.name is not None
            self._vacate(child, code)
        if code_changed and not self._stops:
            self._start_anew()

    def _vacate(self, child, code):
        """Make room for the successor of a process that ended."""
        self._draining.pop(child.pid, None)
        seat = next((seat for seat in self._seats if seat.child is child), None)
        if seat is not None:
            seat.child = None
            quick = time.monotonic() - seat.began < QUICK_DEATH_SECONDS
            seat.quick_deaths = seat.quick_deaths + 1 if quick and code else 0
        if code in (0, CODE_CHANGED_EXIT) or child.name is None:
            return
        how = ": ".join(filter(None, [describe_exit(code), child.killed_for]))
        heir = seat or self._seats[0]
        heir.predecessors.append((child.name, how))
        wait = 0.0
        if heir.quick_deaths:
            wait = min(FIRST_RESTART_WAIT_SECONDS * 2 ** (heir.quick_deaths - 1), LONGEST_RESTART_WAIT_SECONDS)
        heir.not_before = time.monotonic() + wait
        events.process_ended(child.pid, how, wait)

    def _start_anew(self):
        """Load the code of upgraded modules: a new program in this process, while the old workers finish their jobs."""
        events.supervisor_reexecuted()
        for child in self._children():
            os.kill(child.pid, signal.SIGHUP)
        os.environ[DRAINING_VARIABLE] = ",".join(str(child.pid) for child in self._children())
        os.environ[PAUSED_VARIABLE] = "1" if self._paused else ""
        logging.shutdown()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    # --- killing -----------------------------------------------------------------------------------------------------

    def _kill(self, child, reason):
        child.killed_for = reason
        events.process_killed(child.pid, reason)
        os.kill(child.pid, signal.SIGKILL)

    def _enforce_memory(self):
        limit = config["limit_memory_hard"]
        for child in self._children() if limit else ():
            try:
                memory = psutil.Process(child.pid).memory_info().rss
            except psutil.NoSuchProcess:
                continue
            if memory > limit:
                self._kill(child, f"memory {memory // 2**20} MiB over limit_memory_hard {limit // 2**20} MiB")

    def _enforce_pulse(self):
        """Kill what does not answer any more: a job holds the interpreter, so no timeout and no signal gets through."""
        # about when others begin to take its jobs: mostly its successor is first, and can say how it ended
        limit = max(
            SHORTEST_SILENCE_SECONDS, self.options.stale_after_seconds - self.options.heartbeat_interval_seconds
        )
        for child in self._children():
            if child.pulse is None:
                continue
            silent, child.heard = child.heard == child.pulse[0], child.pulse[0]
            # ticks, not time: when all of the processes were stopped and continue, nobody's silence means anything
            child.silent_ticks = child.silent_ticks + 1 if silent else 0
            if child.silent_ticks * TICK_SECONDS >= limit:
                child.silent_ticks = 0
                self._kill(child, f"it did not answer for {limit:g} s, a job may have held the interpreter")

    def _enforce_stop(self):
        """Kill what is left some time after the second signal to stop."""
        if self._stops < 2:
            return
        self._ticks_in_a_hurry += 1
        if self._ticks_in_a_hurry * TICK_SECONDS >= LAST_WAIT_SECONDS:
            for child in self._children():
                self._kill(child, f"still there {LAST_WAIT_SECONDS:g} s after the second signal to stop")


def keep_counting(pulse):
    """In a worker process: show that its threads get to run."""
    while True:
        pulse[0] = (pulse[0] + 1) % 256
        time.sleep(PULSE_SECONDS)


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
