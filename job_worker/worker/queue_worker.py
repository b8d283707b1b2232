"""One worker: claims the jobs of one database and hands them to its threads."""

import contextlib
import os
import random
import re
import select
import socket
import threading
import time
import uuid
from functools import partial
from types import SimpleNamespace

import psycopg2
from odoo import sql_db
from odoo.modules.module import get_manifest
from odoo.tools import config

from .. import attempts, queries
from ..database_errors import is_trouble
from ..lifecycle import MAX_BACKOFF_SECONDS, SETTLE, STALE_AFTER_SECONDS
from . import events, filestore, recovery
from .attempt import LOST, SHUTDOWN
from .claiming import Claiming
from .connection import Backoff, Connection, scarcity
from .executor import Executor
from .gate import Gate
from .home_check import HomeCheck, require_home
from .monitor import Monitor
from .obstacles import BLOCKED, PAUSED, TROUBLE, Obstacles
from .pool import Pool
from .signals import Signals
from .unwritten import UnwrittenEnds

BUSY_CHANNEL_WAIT_SECONDS = 0.001
FULL_CHANNEL_WAIT_SECONDS = 0.25
LOCKED_SCHEDULE_WAIT_SECONDS = 0.05
LONGEST_NAP_SECONDS = 0.5
GIVE_BACK_AFTER_SECONDS = 0.5
GIVE_UP_AFTER_SECONDS = 10.0
GATE_SECONDS = 1.0
_JOB_ID = re.compile(r"\b\d{1,18}\b")
_LOST = "lost"
ENDING = "it ends when its running jobs have"


def new_worker_name():
    """A name no other worker has: host, process and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def derived_name(name):
    """A further name for a worker of the process whose workers are called ``name``: whoever knows that can tell."""
    return f"{name}/{uuid.uuid4().hex[:4]}"


class QueueWorker:
    """Runs jobs of one database in threads of this process.

    :param str db_name: database
    :param int concurrency: jobs to run at once
    :param float poll_timeout: seconds between looks for jobs when nothing wakes the worker
    :param float stale_after_seconds: a worker without heartbeat for so long is dead, its jobs are recovered
    :param float heartbeat_interval_seconds: between heartbeats
    :param float max_backoff_seconds: longest delay between retries
    :param threading.Event stop_event: set it to stop: running jobs finish, then :meth:`run` returns
    :param bool listen: wait for notifications and keep statements prepared; without, the worker only polls, and nothing
        it does needs the same session twice, as poolers want it
    :param float shutdown_timeout: seconds that running jobs have to finish, ``None`` for no limit
    :param str name: unique name of the worker, made up by default
    :param predecessors: workers whose process died, as ``(name, what is known of its end)``: their jobs are recovered
        first of all, those of derived names too
    :param bool pause_asked: begin as if it was asked to pause in the database
    :param on_pause_asked: called with the database and whether it was asked to pause, when that changes
    :param on_ready: called before it claims for the first time
    :param on_code_changed: called when this process has old code of modules and a new program would have newer one; by
        default, the registry is loaded again with what this process has, or the worker waits
    :param on_thread_abandoned: called after a thread was given up because its job can't be interrupted
    :raise ValueError: a number is out of range
    """

    def __init__(
        self,
        db_name,
        concurrency=2,
        poll_timeout=5,
        stale_after_seconds=STALE_AFTER_SECONDS,
        heartbeat_interval_seconds=15,
        max_backoff_seconds=MAX_BACKOFF_SECONDS,
        stop_event=None,
        *,
        listen=True,
        shutdown_timeout=None,
        name=None,
        predecessors=(),
        pause_asked=False,
        on_pause_asked=None,
        on_ready=None,
        on_code_changed=None,
        on_thread_abandoned=None,
    ):
        if concurrency < 1:
            raise ValueError(f"concurrency can't be below 1: {concurrency}")
        if not 0 < heartbeat_interval_seconds < stale_after_seconds:
            raise ValueError("the heartbeat interval must be above 0 and below the time after which a worker is stale")
        if concurrency > config["db_maxconn"]:
            raise ValueError(
                f"concurrency {concurrency} needs more than db_maxconn = {config['db_maxconn']} connections"
            )
        self.db_name = db_name
        self.poll_timeout = poll_timeout
        self.stale_after_seconds = stale_after_seconds
        self.heartbeat_interval_seconds = heartbeat_interval_seconds
        self.max_backoff_seconds = max_backoff_seconds
        self.name = None
        self._first_name = self._next_name = name or new_worker_name()
        self._listen = listen
        self._shutdown_timeout = shutdown_timeout
        self._predecessors = list(predecessors)
        self._on_code_changed = on_code_changed
        self.on_thread_abandoned = on_thread_abandoned or (lambda: None)
        self._stop_event = stop_event or threading.Event()
        self._stop_now = threading.Event()
        self._paused = False
        self._pause_asked = pause_asked
        self._on_pause_asked = on_pause_asked or (lambda db_name, paused: None)
        self._on_ready = on_ready or (lambda: None)
        self.obstacles = Obstacles()
        self._home = HomeCheck(db_name)
        self.serving = False
        self._gate = Gate(db_name)
        self._superseded = False
        self._buried = False
        self.connection = Connection(db_name, self._prepare_connection, session=listen)
        self._claiming = Claiming(session=listen)
        self._signals = Signals(db_name)
        self._trouble = Backoff()
        self._unsettled = set()
        self._doubtful = False
        self.lost = False
        self.unwritten = UnwrittenEnds()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._executor = Executor(
            db_name,
            concurrency,
            max_backoff_seconds,
            self.unwritten,
            self._on_lost,
            has_next=lambda: self.pool.has_next,
            modules=lambda: self._gate.modules,
            prepare=listen,
        )
        self.pool = Pool(concurrency, self._executor.run, self._wake, self._executor.release)
        self._monitor = Monitor(self, session=listen)

    @property
    def state(self):
        """As ``queue.worker`` has it."""
        if self.stopping:
            return "draining"
        return self.obstacles.state or "running"

    @property
    def reason(self):
        """Why nothing is claimed, or what does not work; ``None`` if all is well."""
        return ENDING if self.stopping else self.obstacles.reason

    @property
    def stopping(self):
        return self._stop_event.is_set() or self._stop_now.is_set()

    def stop(self):
        """Claim no more; :meth:`run` returns when the running jobs have finished. For signal handlers too."""
        self._stop_event.set()
        self._wake()

    def stop_now(self):
        """Interrupt the running jobs and give them back uncounted; then :meth:`run` returns."""
        self._stop_now.set()
        self._wake()

    def pause(self, paused=True):
        """Claim no more until ``pause(False)``; running jobs go on."""
        self._paused = paused
        self._wake()

    def bury(self, name, how):
        """Take back the jobs of a process that died, see ``predecessors``. For any thread."""
        self._predecessors.append((name, how))
        self._wake()

    def run(self):
        """Serve until stopped. Survives whatever happens to the database."""
        self.pool.start()
        self._monitor.start()
        try:
            while not self.stopping:
                try:
                    self._serve()
                except Exception as error:
                    if scarcity.note(error):
                        events.connections_scarce(self.db_name, error)
                    self.lost = is_trouble(error)
                    self.in_trouble("claims", error)
                    self._let_go()  # not before: what the error is about shows in whether its connection stands
                    self._nap(self._trouble.next_wait())
            self._drain()
        finally:
            self._monitor.stop()
            self.pool.close()
            self._leave()

    # --- serving -----------------------------------------------------------------------------------------------------

    def _serve(self):
        """Claim and hand out until stopped, while the gate is open.

        :raise Exception: the database is away, or something is wrong with it or with this worker
        """
        self.serving = False
        while not self.stopping:
            open_ = self.serving or self._enter()
            wait = self._step() if open_ else None
            if self._trouble.broken:
                self._trouble.reset()
                self.lost = False
                self.out_of_trouble("claims")
            if scarcity:
                self._let_go()
            if open_:
                self._wait(wait)
            else:
                self.connection.close()  # whose notifications nobody would take
                self._nap(GATE_SECONDS)

    def _enter(self):
        """Begin to work on the database, or go on after something about it changed, if its gate is open."""
        first = self._gate.modules is None
        self.serving = self._pass_gate()
        if self.serving:
            self._register()
            if first:
                self._look_for_files()
                self._on_ready()
            if self._trouble.broken:
                self._executor.probe()  # the worker's own connection may stand while no other can be opened
        return self.serving

    def _pass_gate(self):
        if self._superseded:
            return False
        if reason := self._home.obstacle():
            self._hold(reason)
            return False
        reason = self._gate.why_closed()
        if self._gate.has_new_code and self._on_code_changed:
            self._superseded = True
            self._on_code_changed()
            self._give_back(self.pool.take_waiting(), "the code of modules has changed")
            return False
        if reason:
            self._stay_outside(reason)
            return False
        if self._gate.load_registry(self._home.place):
            events.registry_reloaded(self.db_name)
        self._clear(BLOCKED)
        return True

    def _stay_outside(self, reason):
        """The gate is closed: tell it, as far as the database can keep it."""
        logged = self.obstacles.report(BLOCKED, reason)
        if not self._gate.has_addon:
            self.name = None
        elif logged:
            with contextlib.suppress(psycopg2.Error):  # the tables may be of another version, or locked
                self._give_back(self.pool.take_waiting(), reason)
                self._make_known(self._gate.connection)
            self._gate.connection.close()
        if logged:
            events.claiming_paused(self.name, self.db_name, reason)

    def _let_go(self):
        """Close what is open and not needed for the moment, for others to have a turn."""
        self.connection.close()
        if not self.pool.claims():
            sql_db.close_db(self.db_name)  # what loading the registry left in Odoo's pool

    def _hold(self, reason):
        """Leave a database alone that is not the queue's, without a trace in it; look again soon."""
        if self._home.is_settled and self.obstacles.report(BLOCKED, reason):
            events.database_held(self.db_name, reason)
        self.name = None  # nor is the row that had it to be touched

    def _register(self):
        """Make the worker known, and take stock of what it and its predecessors own."""
        self._make_known(self.connection)
        self._buried = False
        self._recover_predecessors()
        self._take_stock()

    def _recover_predecessors(self):
        while self._predecessors:
            died, how = self._predecessors[0]
            while recovery.recover_orphans(
                self.connection,
                self.unwritten,
                self.stale_after_seconds,
                self.max_backoff_seconds,
                buried=died,
                how=how,
            ):
                pass
            self._predecessors.pop(0)

    def _make_known(self, connection):
        """Add the worker's row, or refresh it; under a new name if it has none that lives."""
        with connection.transaction() as cr:
            if self.name and self._beat(cr) is None:
                self.name = None
            if not self.name:
                values = {
                    "name": self._next_name,
                    "hostname": socket.gethostname(),
                    "pid": os.getpid(),
                    "version": get_manifest("job_worker").get("version"),
                    "databases": self.db_name,
                    "slots": self.pool.slots,
                    "stale_after": self.stale_after_seconds,
                    "pause_requested": self._pause_asked,
                    "state": self.state,
                    "reason": self.reason,
                }
                queries.register_worker(cr, values)
        if not self.name:
            self.name, self._next_name = self._next_name, derived_name(self._first_name)
            events.worker_started(self.name, self.db_name, self.pool.slots)

    def _look_for_files(self):
        with self.connection.transaction() as cr:
            folder = filestore.find_elsewhere(cr, self.db_name)
        if folder:
            events.files_elsewhere(self.db_name, folder)

    def _beat(self, cr):
        return queries.beat(cr, self.name, self.state, self.reason, len(self.pool.running()), 0)

    def _prepare_connection(self, cr):
        require_home(cr)
        if self._listen:
            queries.listen(cr)
        self._claiming.prepare(cr, self._signals.expression)
        self._claiming.forget()

    def _take_stock(self):
        """Give back what was claimed unknowingly."""
        with self.connection.transaction() as cr:
            # looked at in the order in which an attempt goes from one to the other, and before the database
            known = self.pool.claims() | self.unwritten.claims()
            owned = queries.claimed_by(cr, self.name).items()
        unknown = [SimpleNamespace(id=job_id, claim_seq=seq) for job_id, seq in owned if known.get(job_id) != seq]
        self._give_back(unknown, "it is not known that they were claimed")

    def _on_lost(self):
        """Called on a slot's thread that does not know how an attempt ended, or can't write it."""
        self._doubtful = True
        self._wake()

    def _step(self):
        """Claim what there is room for.

        :return: seconds until the next step, unless something wakes the worker
        """
        if self._buried:
            self._start_over()
        if self._predecessors:
            self._recover_predecessors()
        if self._doubtful:
            self._doubtful = False
            self._executor.probe()
        if self._unsettled:
            self._settle()
        self._give_back(self.pool.take_waiting(longer_than=GIVE_BACK_AFTER_SECONDS), "the threads are busy")
        best = self._claiming.take_best_heard()
        if best is not None:
            # Only what is worse: what goes back is heard of here too, and must not send itself round and round.
            self._give_back(self.pool.take_waiting(worse_than=best), "better jobs have come")
        if claim := self.pool.take_put_off():
            self._put_off(claim)
        if self._is_paused():
            return self.poll_timeout
        with self.pool.claiming() as (free, count):
            if count:
                return self._claim(free, count)
        return GIVE_BACK_AFTER_SECONDS if self.pool.has_waiting else self.poll_timeout

    def _claim(self, free, count):
        found = self._claiming.claim(self.connection, self.name, free, count, self._gate.expected)
        if found.claims and self._signals.follow(found.signals):
            self._give_back(found.claims, "modules have changed")
            self.serving = False
            return 0
        self._submit(found.claims)
        if found.starving:
            self._hold_back_callers()
        if not found.alive:
            self._buried = True
            return 0
        if found.gate_closed:
            self.serving = False
            return 0
        if found.due_in is not None and found.due_in <= 0:
            return 0 if self._mark_due() else LOCKED_SCHEDULE_WAIT_SECONDS
        if found.busy:
            return random.uniform(0.5, 1) * BUSY_CHANNEL_WAIT_SECONDS
        if len(found.claims) == count or found.again:
            return 0
        full = found.queued and not found.claims
        wait = min(self.poll_timeout, FULL_CHANNEL_WAIT_SECONDS) if full else self.poll_timeout
        return wait if found.due_in is None else min(found.due_in, wait)

    def _hold_back_callers(self):
        """Let a job begin that callers hand on from one to the next, see :func:`~..queries.hold_active_jobs`."""
        with self.connection.transaction() as cr:
            queries.hold_back_callers(cr)

    def _submit(self, claims):
        claims, others = self.pool.admit(claims)
        self._give_back(others, "a job whose worker died is to run alone")
        if claims and claims[-1].runs_alone:
            events.job_to_run_alone(claims[-1])
        self.pool.submit(claims)

    def _put_off(self, claim):
        """Try again later, maybe elsewhere, to run a job alone."""
        with self.connection.transaction() as cr:
            attempts.put_off(cr, claim, claim.died_ago)
        events.job_given_back(claim, "it is to run alone, and other jobs take long")

    def _settle(self):
        """Settle what transactions told of that ended; what runs here settles by itself what came to wait for it."""
        job_ids, self._unsettled = self._unsettled, set()
        self.pool.expect_children(job_ids)
        try:
            recovery.settle(self.connection, job_ids)
        except Exception as error:
            if is_trouble(error):
                raise
            events.unexpected("jobs that wait", error)  # the sweep makes up for it, or tells that it can't

    def _mark_due(self):
        """Make claimable what is due; whether there was anything that nobody else is changing."""
        with self.connection.transaction() as cr:
            return self._claiming.mark_due(cr)

    def _start_over(self):
        """After others took this worker for dead: nothing it runs is its own any more."""
        events.worker_buried(self.name)
        self.pool.take_waiting()
        for attempt in self.pool.running():
            attempt.interrupt(LOST)
        self.name = None
        self._register()

    def on_beat(self, name, pause_requested):
        """Called by the monitor with the answer to a heartbeat of ``name``, ``None`` if it was taken for dead."""
        if name != self.name:
            return
        if pause_requested is None:
            self._buried = True
        elif pause_requested != self._pause_asked:
            self._pause_asked = pause_requested
            self._on_pause_asked(self.db_name, pause_requested)
        else:
            return
        self._wake()

    # --- obstacles ---------------------------------------------------------------------------------------------------

    def _is_paused(self):
        if self._paused or self._pause_asked:
            self._give_back(self.pool.take_waiting(), "paused")
            self._report(PAUSED, "asked to")
            return True
        self._clear(PAUSED)
        return False

    def _report(self, state, reason):
        """Note why nothing is claimed; see :meth:`.obstacles.Obstacles.report`."""
        if self.obstacles.report(state, reason):
            events.claiming_paused(self.name, self.db_name, reason)

    def _clear(self, state):
        if self.obstacles.clear(state) and not self.obstacles:
            events.claiming_resumed(self.name)

    def in_trouble(self, where, error, patience=0.0):
        """Note that a part of the worker does not work; repeated in the log every minute. For any thread.

        :param str where: the part
        :param error: an exception
        :param float patience: seconds that it has to last to be told
        """
        lost = is_trouble(error)
        reason = f"{'database lost' if lost else where}: {events.error_line(error)}"
        if self.obstacles.report(TROUBLE, reason, where, kind=_LOST if lost else type(error), patience=patience):
            (events.database_lost if lost else events.worker_in_trouble)(self.name, where, error)
            self._monitor.beat_soon()

    def out_of_trouble(self, where):
        """Note that a part of the worker works."""
        if kind := self.obstacles.clear(TROUBLE, where):
            if kind == _LOST:
                events.database_back(self.name)
            else:
                events.worker_out_of_trouble(self.name, where)
            self._monitor.beat_soon()

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _wake(self):
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: there is nobody to wake
            self._wake_sender.send(b".")

    def _nap(self, seconds):
        """Wait, unless stopped. Not on the event: a signal handler that sets it while it is waited for may deadlock."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.stopping:
            time.sleep(min(left, LONGEST_NAP_SECONDS))

    def _wait(self, seconds):
        """Wait for a notification, for :meth:`_wake`, or for the time to pass.

        :raise psycopg2.Error: the connection broke
        """
        if self.connection.is_open and self._hear():
            return
        while seconds > 0 and not self.stopping:
            nap = min(seconds, LONGEST_NAP_SECONDS)
            watched = [self._wake_receiver, self.connection] if self.connection.is_open else [self._wake_receiver]
            ready, _writable, _failed = select.select(watched, [], [], nap)
            if self.connection in ready and self._hear():
                return
            if self._wake_receiver in ready:
                self._wake_receiver.recv(4096)
                return
            seconds -= nap

    def _hear(self):
        """Take the notifications that have come; whether there were any.

        :raise psycopg2.Error: the connection broke
        """
        notifications = self.connection.notifications()
        for notification in notifications:
            if notification.channel == SETTLE:
                self._unsettled.update(map(int, _JOB_ID.findall(notification.payload)))
            else:
                self._claiming.hear(notification.payload)
        return bool(notifications)

    # --- stopping ----------------------------------------------------------------------------------------------------

    def _give_back(self, claims, reason):
        """Make jobs claimable again that no thread has begun."""
        if not claims:
            return
        try:
            with self.connection.transaction() as cr:
                attempts.give_back_unbegun(cr, claims)
        except Exception as error:
            if is_trouble(error):
                raise
            for claim in claims:  # one of them can't be given back
                self.unwritten.add(claim, partial(_give_back_one, claim=claim))
        else:
            events.jobs_given_back(claims, reason)

    def _drain(self):
        """Let the running jobs finish, for as long as they may; give back the others.

        The connection is closed meanwhile: with nobody to take the notifications, the server would soon wait for that,
        in a transaction that keeps the whole cluster from cleaning up.
        """
        events.worker_stopping(self.name, len(self.pool.running()))
        self._try_to(lambda: self._give_back(self.pool.take_waiting(), "shutdown"))
        self.connection.close()
        deadline = None if self._shutdown_timeout is None else time.monotonic() + self._shutdown_timeout
        give_up_at = None
        while not self.pool.wait_until_empty(LONGEST_NAP_SECONDS):
            now = time.monotonic()
            if self._stop_now.is_set() or (deadline and now > deadline):
                give_up_at = give_up_at or now + GIVE_UP_AFTER_SECONDS
                if now > give_up_at:  # those that wait for the answer to their commit, maybe: others will look at it
                    break
                for attempt in self.pool.running():
                    attempt.interrupt(SHUTDOWN)  # the monitor repeats it, and abandons what does not react

    def _leave(self):
        """Take leave of the database: nothing stays started in this worker's name."""
        if self.name:
            self._try_to(self._take_stock, lambda: self.unwritten.flush(self.connection), self._unregister)
        self.connection.close()
        self._wake_receiver.close()
        self._wake_sender.close()
        events.worker_stopped(self.name)

    def _unregister(self):
        with self.connection.transaction() as cr:
            queries.unregister_worker(cr, self.name)

    def _try_to(self, *steps):
        """Steps on the way out, which goes on whatever comes of them."""
        for step in steps:
            try:
                step()
            except Exception as error:
                if is_trouble(error):  # others will find what is left
                    return
                self.in_trouble("shutdown", error)


def _give_back_one(cr, claim):
    attempts.give_back_unbegun(cr, [claim])
