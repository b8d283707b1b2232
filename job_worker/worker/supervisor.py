"""The parent of the worker processes: starts and replaces them, passes signals on, holds no database connection."""

import contextlib
import gc
import json
import logging
import mmap
import os
import signal
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field

import psutil
from odoo import sql_db
from odoo.tools import config
from odoo.tools.misc import dumpstacks

from . import events
from .gate import Gate
from .home_check import HomeCheck
from .runner import STOP_NOW, QueueJobRunner

# What a new program is told of the old one's processes: "pid:name,…", whether the service is paused, and for each seat
# the databases in which the process was asked to pause.
DRAINING_VARIABLE = "JOB_WORKER_DRAINING"
PAUSED_VARIABLE = "JOB_WORKER_PAUSED"
PAUSED_DATABASES_VARIABLE = "JOB_WORKER_PAUSED_DATABASES"
TICK_SECONDS = 0.25
PULSE_SECONDS = 0.5
BOARD_BYTES = 4096
SHORTEST_SILENCE_SECONDS = float(os.environ.get("JOB_WORKER_SHORTEST_SILENCE", "30"))
LAST_WAIT_SECONDS = 10.0
QUICK_DEATH_SECONDS = 10.0
FIRST_RESTART_WAIT_SECONDS = 0.25
LONGEST_RESTART_WAIT_SECONDS = 30.0
FAILED_TICK_WAIT_SECONDS = 5.0
STOPS = {signal.SIGTERM, signal.SIGINT}
SIGNALS = STOPS | {signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}


@dataclass
class Death:
    """The unexpected end of a process.

    :param str name: of its workers
    :param str how: what is known of it
    """

    name: str
    how: str
    at: float = field(default_factory=time.monotonic)


class Board:
    """Memory that the supervisor and one of its processes share; neither ever waits for the other.

    The process counts in it for as long as its threads get to run. The supervisor writes the deaths that the process is
    to know of, because their jobs are to be taken back.
    """

    def __init__(self):
        self._memory = mmap.mmap(-1, BOARD_BYTES)

    def keep_counting(self):
        """In the process: show that its threads get to run."""
        while True:
            self._memory[0] = (self._memory[0] + 1) % 256
            time.sleep(PULSE_SECONDS)

    @property
    def count(self):
        return self._memory[0]

    def announce(self, deaths):
        """Write deaths, the latest of them if there is no room for all."""
        while len(text := json.dumps([(death.name, death.how) for death in deaths]).encode() + b"\0") >= BOARD_BYTES:
            deaths = deaths[1:]
        self._memory[1 : 1 + len(text)] = text

    def deaths(self):
        """In the process: the deaths, as ``(name, what is known of its end)``; none while they are being written."""
        try:
            return [tuple(death) for death in json.loads(self._memory[1:].partition(b"\0")[0] or b"[]")]
        except ValueError:
            return []


@dataclass
class Child:
    """A worker process.

    :param int pid: its number
    :param str name: of its workers; ``None`` if nothing is known of it
    :param Board board: shared with it; ``None`` if it was started by a program that ran in this process before
    :param list predecessors: deaths it was told of
    :param set paused: databases in which it was asked to pause
    """

    pid: int
    name: str | None = None
    board: Board | None = None
    predecessors: list = field(default_factory=list)
    paused: set = field(default_factory=set)
    wants_successor: bool = False
    heard: int = 0
    silent_ticks: int = 0
    killed_for: str | None = None

    def tell(self, deaths):
        """Have it take back the jobs of processes that died."""
        self.predecessors = self.predecessors + deaths
        self.board.announce(self.predecessors)


@dataclass
class Seat:
    """The place of one process; a new process takes it when the one in it ends."""

    child: Child | None = None
    began: float = 0.0
    predecessors: list = field(default_factory=list)
    paused: set = field(default_factory=set)
    quick_deaths: int = 0
    not_before: float = 0.0

    def leave(self):
        """The process leaves the seat; what it was asked in the database is asked of its successor too."""
        child, self.child, self.paused = self.child, None, self.child.paused
        return child

    def wait_longer(self):
        """Put off the next start, each time for longer.

        :return: seconds
        """
        self.quick_deaths += 1
        wait = min(FIRST_RESTART_WAIT_SECONDS * 2 ** (self.quick_deaths - 1), LONGEST_RESTART_WAIT_SECONDS)
        self.not_before = time.monotonic() + wait
        return wait


@dataclass
class Supervisor:
    """Keeps worker processes alive.

    Those that are to be replaced finish their jobs beside their successors, but there are never more than twice as many
    processes as asked for: who wants a successor waits until there is room.

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
    _outdated: bool = False
    _unread: bytes = b""

    def run(self):
        """Run until SIGTERM or SIGINT; a second one stops at once.

        :return: exit status
        """
        self._inherit()
        self._receiver, self._sender = os.pipe()
        os.set_blocking(self._receiver, False)
        self._preload()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS | {STOP_NOW})
        while not self._stops or self._children():
            try:
                self._tick()
            except Exception as error:  # whatever it is, its processes are not left alone
                events.unexpected("supervisor", error)
                time.sleep(FAILED_TICK_WAIT_SECONDS)
            time.sleep(TICK_SECONDS)
        return 0

    def _tick(self):
        # Signals are blocked and asked for. Not with sigtimedwait(): in a process that was stopped and continued it
        # may return one that never came.
        while pending := signal.sigpending() & SIGNALS:
            self._on_signal(signal.sigwait(pending))
        ended = self._reap()
        self._read_reports()  # the last words of those that ended, too
        for child, code in ended:
            self._vacate(child, code)
        if self._outdated and not self._stops:
            self._start_anew()
        self._replace()
        if not self._stops:
            self._fill_seats()
        self._enforce_memory()
        self._enforce_pulse()
        self._enforce_stop()

    def _inherit(self):
        """Take over from the program that ran in this process before, if there was one."""
        for part in filter(None, os.environ.pop(DRAINING_VARIABLE, "").split(",")):
            pid, _colon, name = part.partition(":")
            self._draining[int(pid)] = Child(int(pid), name or None)
        self._paused = bool(os.environ.pop(PAUSED_VARIABLE, ""))
        self._seats = [Seat() for _seat in range(self.processes)]
        paused = json.loads(os.environ.pop(PAUSED_DATABASES_VARIABLE, "[]"))
        for seat, databases in zip(self._seats, paused, strict=False):
            seat.paused = set(databases)

    def _preload(self):
        """Load registries before forking, so that the processes share their memory. A signal to stop ends that too."""
        for number in STOPS:
            signal.signal(number, self._stop_loading)
        with contextlib.suppress(SystemExit):
            # a signal that came while this program was imported comes here
            signal.pthread_sigmask(signal.SIG_SETMASK, SIGNALS - STOPS)
            preload(self.options.databases)

    def _stop_loading(self, number, _frame):
        self._on_signal(number)
        if self._stops == 1:  # a second one may come when nothing is left to be ended
            sys.exit(0)

    def _children(self):
        return [seat.child for seat in self._seats if seat.child] + list(self._draining.values())

    def _on_signal(self, number):
        if number in STOPS:
            # A process may get a SIGTERM of its own, as a service manager sends one to all of them at once: to stop now
            # is told in another way.
            self._stops += 1
            self._tell(signal.SIGTERM if self._stops == 1 else STOP_NOW)
        elif number == signal.SIGHUP:
            self._outdated = True
        elif number == signal.SIGQUIT:
            dumpstacks()
            self._tell(number)
        else:
            self._paused = number == signal.SIGUSR1
            self._tell(number)

    def _tell(self, number):
        for child in self._children():
            os.kill(child.pid, number)

    # --- starting ----------------------------------------------------------------------------------------------------

    def _fill_seats(self):
        for seat in self._seats:
            if seat.child or time.monotonic() < seat.not_before:
                continue
            if len(self._children()) < 2 * self.processes:
                self._start(seat)

    def _start(self, seat):
        sql_db.close_all()
        token = uuid.uuid4().hex[:8]
        seat.began = time.monotonic()
        # what is older is seen by its heartbeat
        known = [death for death in seat.predecessors if seat.began - death.at < self.options.stale_after_seconds]
        try:
            board = Board()
            board.announce(known)
            pid = os.fork()
        except OSError as error:
            events.process_not_started(error, seat.wait_longer())
            return
        if not pid:
            self._be_worker(f"{socket.gethostname()}-{os.getpid()}-{token}", seat.paused, board)
        seat.child = Child(pid, f"{socket.gethostname()}-{pid}-{token}", board, known, seat.paused)
        seat.predecessors = []
        events.process_started(pid, self._seats.index(seat) + 1)

    def _be_worker(self, name, paused, board):
        """The life of a worker process; does not return."""
        status = 1
        try:
            os.setpgrp()  # Ctrl-C in a terminal reaches the supervisor alone
            threading.Thread(target=board.keep_counting, name="job_worker.pulse", daemon=True).start()
            runner = QueueJobRunner(self.options, name=name, deaths=board.deaths, paused=paused, report=self._report)
            runner.pause(self._paused)
            runner.handle_signals()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS | {STOP_NOW})
            runner.run()
            status = 0
        except BaseException as error:
            events.unexpected("worker process", error)
        finally:
            logging.shutdown()
            os._exit(status)  # threads that can't be interrupted would hold up an orderly exit

    def _report(self, what, *about):
        """In a worker process: tell the supervisor something, see :meth:`_read_reports`."""
        with contextlib.suppress(OSError):  # it is gone, or another program runs in it
            os.write(self._sender, json.dumps([os.getpid(), what, *about]).encode() + b"\n")

    # --- replacing ---------------------------------------------------------------------------------------------------

    def _read_reports(self):
        """Note what processes have told: each line was written in one piece, but may be read in two."""
        with contextlib.suppress(BlockingIOError):
            self._unread += os.read(self._receiver, 65536)
        *lines, self._unread = self._unread.split(b"\n")
        for pid, what, *about in map(json.loads, lines):
            child = next((seat.child for seat in self._seats if seat.child and seat.child.pid == pid), None)
            if child is None:
                continue
            if what == "paused":
                child.paused.add(*about)
            elif what == "resumed":
                child.paused.discard(*about)
            elif what == "replace":
                child.wants_successor = True
            else:
                self._outdated = True

    def _replace(self):
        """Let processes go that want a successor, as far as there is room for both."""
        for seat in self._seats:
            if seat.child and seat.child.wants_successor and len(self._draining) < self.processes:
                os.kill(seat.child.pid, signal.SIGHUP)
                child = seat.leave()
                self._draining[child.pid] = child

    def _reap(self):
        """The processes that have ended, with their exit codes."""
        ended = []
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                # one that is not its own was left to it by a process that ended, if it is the first of a container
                child = next((child for child in self._children() if child.pid == pid), Child(pid))
                ended.append((child, os.waitstatus_to_exitcode(status)))
        return ended

    def _vacate(self, child, code):
        """Make room for the successor of a process that ended."""
        self._draining.pop(child.pid, None)
        seat = next((seat for seat in self._seats if seat.child is child), None)
        wait = 0.0
        if seat is not None:
            seat.leave()
            if code and time.monotonic() - seat.began < QUICK_DEATH_SECONDS:
                wait = seat.wait_longer()
            else:
                seat.quick_deaths = 0
        if code and child.name is not None:
            how = ": ".join(filter(None, [describe_exit(code), child.killed_for]))
            # with those whose jobs it may not have come to
            self._hand_on(seat, [*child.predecessors, Death(child.name, how)])
            events.process_ended(child.pid, how, wait)

    def _hand_on(self, seat, deaths):
        """Leave the jobs of processes that died to the next one in the seat; of those in no seat, to any that works."""
        heir = seat or next((seat for seat in self._seats if seat.child), self._seats[0])
        if heir.child:
            heir.child.tell(deaths)
        else:
            heir.predecessors += deaths

    def _start_anew(self):
        """Load changed code: a new program in this process, while the old workers finish their jobs."""
        self._outdated = False
        events.supervisor_reexecuted()
        self._tell(signal.SIGHUP)
        os.environ[DRAINING_VARIABLE] = ",".join(f"{child.pid}:{child.name or ''}" for child in self._children())
        os.environ[PAUSED_VARIABLE] = "1" if self._paused else ""
        paused = [sorted(seat.child.paused if seat.child else seat.paused) for seat in self._seats]
        os.environ[PAUSED_DATABASES_VARIABLE] = json.dumps(paused)
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
            except (psutil.Error, OSError):  # it has just ended, or there are no more files to be opened
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
            if child.board is None:
                continue
            silent, child.heard = child.heard == child.board.count, child.board.count
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


def preload(databases):
    """Load the registries that may be loaded before forking, so that the processes share their memory."""
    for db_name in databases:
        try:
            home, gate = HomeCheck(db_name), Gate(db_name)
            if not (home.obstacle() or gate.why_closed()):
                gate.load_registry(home.place)
        except Exception as error:
            events.unexpected(f"registry of {db_name}", error)
    gc.collect()
    gc.freeze()  # what is loaded by now stays: the workers' collections need not walk it, nor copy its pages


def describe_exit(code):
    """What an exit code tells people: ``killed by SIGKILL``, ``exit code 1``."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    return f"its process was killed by {signal.Signals(-code).name}"
