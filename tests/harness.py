"""Real workers on a real server, and the counting afterwards.

:class:`Database` enqueues and counts, :class:`Worker` is ``odoo-bin job_worker`` as a process with all it forks,
:func:`worker_thread` a :class:`QueueWorker` in a thread of this process. Nothing but :func:`wait_until` waits.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg2
from odoo import SUPERUSER_ID, api, sql_db
from odoo.modules.module import initialize_sys_path
from odoo.modules.registry import Registry
from odoo.tools import config

from tools.paths import LOG, ODOO_BIN

config.parse_config([], setup_logging=False)
initialize_sys_path()

from odoo.addons.job_worker.delay import group  # noqa: E402 only now on the path
from odoo.addons.job_worker.worker import QueueWorker  # noqa: E402

STALE_AFTER = 3
TIMES = {"stale-after": STALE_AFTER, "heartbeat-interval": 1, "poll-timeout": 1, "max-backoff": 1}
POLL_SECONDS = 0.05
UNFINISHED = "('waiting', 'pending', 'started')"

_numbers = itertools.count(1)


def wait_until(condition, timeout=30.0, what="the condition"):
    """Ask again and again; the one place that waits.

    :param condition: called without arguments
    :param float timeout: seconds
    :param str what: for the failure's message
    :return: the first true answer
    :raise AssertionError: there was none in time
    """
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(POLL_SECONDS)
    return answer


def ticks(seconds, interval):
    """Yield every ``interval`` seconds, for ``seconds`` altogether: the pulse of a storm."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        due = time.monotonic() + interval
        wait_until(lambda due=due: time.monotonic() >= due)
        yield


class Database:
    """A database with both addons.

    :param str name: its name
    :param dict server: the variables that lead to its server, by default those of this process
    """

    def __init__(self, name, server=None):
        self.name = name
        self.server = server or {key: os.environ[key] for key in ("PGHOST", "PGPORT", "PGUSER") if key in os.environ}
        self._connection = None

    def close(self):
        """Let go of every connection to it."""
        self._disconnect()
        Registry.delete(self.name)
        sql_db.close_all()

    def empty(self):
        """Forget all jobs, workers and what jobs wrote."""
        self.query(
            "TRUNCATE queue_job, queue_job_attempt, queue_worker, queue_limit_starts, test_job_ledger, test_job_target"
            " RESTART IDENTITY CASCADE"
        )

    def _disconnect(self):
        if self._connection:
            self._connection.close()
            self._connection = None

    def query(self, sql, *params):
        """Rows of a statement in a transaction of its own; one that fails because the server restarts is sent again."""
        for tries in itertools.count(1):
            try:
                return self._query(sql, params)
            except psycopg2.DatabaseError as error:
                if not self._connection or (error.pgcode and not self._connection.closed):
                    raise
                self._disconnect()
                if tries == 50:
                    raise
                time.sleep(POLL_SECONDS * 4)
        return None

    def _query(self, sql, params):
        if not self._connection:
            server = self.server
            self._connection = psycopg2.connect(
                dbname=self.name,
                host=server.get("PGHOST"),
                port=server.get("PGPORT"),
                user=server.get("PGUSER"),
                application_name="tests",
            )
            self._connection.autocommit = True
        with self._connection.cursor() as cr:
            # what a test does by hand goes through even while it makes the database read-only for the workers
            cr.execute("SET default_transaction_read_only = off")
            cr.execute(sql, params or None)
            return cr.fetchall() if cr.description else []

    def value(self, sql, *params):
        """First column of the first row."""
        return self.query(sql, *params)[0][0]

    def locked(self, *job_ids):
        """Another session holds the rows of jobs, as a request that changes them and is not committed yet."""
        return self._other_session("SELECT FROM queue_job WHERE id = ANY(%s) FOR NO KEY UPDATE", list(job_ids))

    def locked_table(self, name):
        """Another session keeps everybody from writing to a table."""
        return self._other_session(f"LOCK TABLE {name} IN EXCLUSIVE MODE")

    @contextmanager
    def _other_session(self, sql, *params):
        server = self.server
        connection = psycopg2.connect(
            dbname=self.name,
            host=server.get("PGHOST"),
            port=server.get("PGPORT"),
            user=server.get("PGUSER"),
            application_name="tests",
        )
        try:
            with connection.cursor() as cr:
                cr.execute(sql, params or None)
            yield
        finally:
            connection.close()

    @contextmanager
    def env(self):
        """Environment of the superuser, committed at the end."""
        for option in ("host", "port", "user"):
            if value := self.server.get(f"PG{option.upper()}"):
                config[f"db_{option}"] = value
        registry = Registry(self.name)
        registry.check_signaling()
        with registry.cursor() as cr:
            yield api.Environment(cr, SUPERUSER_ID, {})

    def enqueue(self, method, calls=((),), **options):
        """Store a job for each element of ``calls``, the arguments of the call.

        :param str method: of ``test.job.target``
        :return: the jobs' ids
        """
        with self.env() as env:
            target = env["test.job.target"]
            jobs = group(*(getattr(target.delayable(**options), method)(*call) for call in calls)).delay()
            return [job.id for job in jobs]

    def enqueue_on(self, record_id, method, count):
        """Store ``count`` jobs that call a method of one ``test.job.target``; their ids."""
        with self.env() as env:
            target = env["test.job.target"].browse(record_id)
            return [job.id for job in group(*(getattr(target.delayable(), method)() for _call in range(count))).delay()]

    def enqueue_one(self, method, *args, **options):
        """Store a job; its id."""
        return self.enqueue(method, [args], **options)[0]

    def job(self, job_id):
        """The row of a job as a dict."""
        names = "state", "attempts", "exc_info", "worker_id", "database_failures"
        row = self.query(f"SELECT {', '.join(names)} FROM queue_job WHERE id = %s", job_id)[0]
        return dict(zip(names, row, strict=True))

    def states(self):
        """How many jobs are in each state."""
        return dict(self.query("SELECT state, count(*)::int FROM queue_job GROUP BY state"))

    def unfinished(self):
        """How many jobs have not ended."""
        return self.value(f"SELECT count(*) FROM queue_job WHERE state IN {UNFINISHED}")

    def wait_for_state(self, job_id, *states, timeout=30):
        """Wait until a job is in one of ``states``; its row."""
        wait_until(
            lambda: self.job(job_id)["state"] in states, timeout, f"job {job_id} {states}, it is {self.job(job_id)}"
        )
        return self.job(job_id)

    def wait_until_drained(self, timeout=60):
        """Wait until every job has ended."""
        wait_until(lambda: not self.unfinished(), timeout, "every job ends")

    def ledger(self):
        """How often each key is in the ledger."""
        return Counter(dict(self.query("SELECT key, count(*)::int FROM test_job_ledger GROUP BY key")))

    def count(self, keys):
        """Compare the ledger with what should be in it.

        :param keys: those expected once each
        :rtype: Count
        """
        ledger, keys = self.ledger(), set(keys)
        states = self.states()
        return Count(
            expected=len(keys),
            once=sum(ledger[key] == 1 for key in keys),
            lost=sum(ledger[key] == 0 for key in keys),
            repeated=sum(ledger[key] > 1 for key in keys),
            foreign=len(ledger.keys() - keys),
            started=states.get("started", 0),
            failed=states.get("failed", 0),
        )

    def workers(self):
        """Names of the workers that say they live."""
        return [name for (name,) in self.query("SELECT name FROM queue_worker WHERE state != 'dead'")]

    def sessions(self, where="true"):
        """Process ids of the other sessions on the database."""
        rows = self.query(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name != 'tests'"
            f" AND pid != pg_backend_pid() AND {where}"
        )
        return [pid for (pid,) in rows]


class Count(dict):
    """What the ledger and the jobs' states say after a fault."""

    def check(self):
        """:raise AssertionError: something got lost, ran twice, or was left behind"""
        wrong = {name: self[name] for name in ("lost", "repeated", "foreign", "started", "failed") if self[name]}
        assert not wrong, f"{self}"
        assert self["once"] == self["expected"], f"{self}"
        return self


class Worker:
    """``odoo-bin job_worker`` in a session of its own; whatever is left of it ends with the ``with`` block.

    :param Database database: it serves, ``None`` for all
    :param options: more of the command line
    :param dict times: changes to :data:`TIMES`
    :param dict environment: changes to the environment
    :param prefix: a command that runs it
    """

    def __init__(self, database, *options, processes=1, concurrency=2, times=(), environment=(), prefix=()):
        self.database = database
        self._processes = processes
        times = {**TIMES, **dict(times)}
        self._command = [*prefix, ODOO_BIN, "job_worker", *(["-d", database.name] if database else [])]
        self._command += [f"--processes={processes}", f"--concurrency={concurrency}"]
        self._command += [f"--{name}={value}" for name, value in times.items()]
        self._command += ["--logfile=", *options]
        self._environment = {**os.environ, **(database.server if database else {}), **dict(environment)}
        self._log_path = LOG / "workers" / f"{os.getpid()}-{next(_numbers)}.log"
        self._process = None

    def __enter__(self):
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                list(map(str, self._command)),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, kind, error, trace):
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()
        if kind:
            sys.stderr.write(f"--- the end of the log of {self._command}:\n{self.log()[-6000:]}\n")
        self._log_path.unlink()

    @property
    def pid(self):
        """Of the supervisor."""
        return self._process.pid

    @property
    def running(self):
        """Whether the supervisor lives."""
        return self._process.poll() is None

    def log(self):
        """What it has logged."""
        return self._log_path.read_text(errors="replace")

    def logged(self, text):
        """How many lines of the log contain ``text``."""
        return sum(text in line for line in self.log().splitlines())

    def processes(self):
        """All that live, the supervisor among them."""
        self._process.poll()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def children(self):
        """Process ids of the forked ones."""
        return [process.pid for process in self.processes() if process.pid != self.pid]

    def wait_until_ready(self):
        """Wait until every process serves the database; the worker."""
        wait_until(
            lambda: self.logged("worker started:") >= self._processes, 60, f"worker started\n{self.log()[-3000:]}"
        )
        return self

    def signal(self, number):
        """Send a signal to the supervisor."""
        self._process.send_signal(number)

    def signal_all(self, number):
        """Send a signal to every process."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def wait(self, timeout=30):
        """Wait for the supervisor's end; its exit status."""
        wait_until(lambda: not self.running, timeout, f"the supervisor ends\n{self.log()[-3000:]}")
        return self._process.returncode

    def stop(self, timeout=30):
        """SIGTERM, then :meth:`wait`."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)


@contextmanager
def worker_thread(database, **options):
    """A :class:`QueueWorker` in a thread of this process, stopped at the end.

    :param Database database: it serves
    :param options: of the worker
    """
    with database.env():
        pass
    stop_event = threading.Event()
    defaults = {
        "poll_timeout": 1,
        "stale_after_seconds": STALE_AFTER,
        "heartbeat_interval_seconds": 1,
        "max_backoff_seconds": 1,
    }
    worker = QueueWorker(database.name, stop_event=stop_event, **{**defaults, **options})
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(lambda: worker.name in database.workers(), 30, "the worker registers")
        yield worker
    finally:
        stop_event.set()
        thread.join(30)
        if thread.is_alive():
            worker.stop_now()
            thread.join(30)
    assert not thread.is_alive(), "the worker did not stop"


def run_odoo(database, *args, environment=(), timeout=120):
    """Run ``odoo-bin`` on a database to its end.

    :return: ``(exit status, output)``
    """
    name = ["-d", database.name] if database else []
    done = subprocess.run(
        [str(ODOO_BIN), *args, *name],
        env={**os.environ, **(database.server if database else {}), **dict(environment)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout


def addons_path_with(folder, file):
    """Write a configuration file whose addons path has ``folder`` too; the variable that leads to it."""
    here = Path(os.environ["ODOO_RC"]).read_text()
    lines = [f"{line},{folder}" if line.startswith("addons_path") else line for line in here.splitlines()]
    file.write_text("\n".join(lines) + "\n")
    return {"ODOO_RC": str(file)}
