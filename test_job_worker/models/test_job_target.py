import contextlib
import ctypes
import decimal
import locale
import logging
import mmap
import os
import re
import socket
import time
from contextvars import ContextVar
from pathlib import Path

import psycopg2
import requests
from odoo import fields, models
from odoo.exceptions import ConcurrencyError, UserError

from odoo.addons.job_worker.exception import FailedJobError, JobError, RetryableJobError

_logger = logging.getLogger(__name__)


class UntellableError(Exception):
    """Fails again where its message is asked for."""

    def __str__(self):
        raise ValueError("no message")


class UnexplainedError(Exception):
    """Fails again where its traceback is asked for."""

    @property
    def __notes__(self):
        raise ValueError("no notes")

    @property
    def __cause__(self):
        raise ValueError("no cause")


class ExitingError(Exception):
    """Ends the interpreter where its message is asked for."""

    def __str__(self):
        raise SystemExit(3)


class UndecidedError(RetryableJobError):
    """Fails again where it is asked when to try again."""

    @property
    def seconds(self):
        raise ValueError("no number")

    @seconds.setter
    def seconds(self, value):
        pass


ERRORS = {
    "untellable": UntellableError,
    "unexplained": UnexplainedError,
    "exiting": ExitingError,
    "undecided": lambda: UndecidedError("later"),
    "concurrency": lambda: ConcurrencyError("a made-up conflict"),
    "job": lambda: JobError("a job error"),
    "failed": lambda: FailedJobError("a failed job error"),
    "retryable": lambda: RetryableJobError("a retryable error"),
    "retry_now": lambda: RetryableJobError("at once", seconds=0),
    "retry_in_7": lambda: RetryableJobError("in seven seconds", seconds=7),
    "ignore_retry": lambda: RetryableJobError("uncounted", seconds=0, ignore_retry=True),
    "user": lambda: UserError("a user error"),
    "value": lambda: ValueError("a value error"),
    "system_exit": lambda: SystemExit(3),
    "serialization": lambda: psycopg2.errors.SerializationFailure("a made-up conflict"),
}
LEFT_BEHIND = []
CONTEXT_VARIABLE = ContextVar("test_job_worker", default=None)


class TestJobTarget(models.Model):
    """Records with a job method for everything that may happen to a job."""

    _name = "test.job.target"
    _description = "Target of Test Jobs"

    name = fields.Char()
    counter = fields.Integer()
    user_id = fields.Many2one("res.users")
    company_id = fields.Many2one("res.company")

    def _job_store_values(self, job_vals):
        values = super()._job_store_values(job_vals)
        if tag := self.env.context.get("test_job_tag"):
            values["test_tag"] = tag
        return values

    def job_nothing(self):
        """Nothing at all: what is left is the queue's own cost."""

    def job_succeed(self, value=True):
        return value

    def job_read(self):
        """One read through the ORM."""
        return self.name

    def job_write(self, value=1):
        """One write through the ORM, to the record of its own."""
        self.counter += value

    def job_echo(self, *args, **kwargs):
        """What arrived, as ``repr``."""
        return {"args": repr(args), "kwargs": repr(kwargs)}

    def job_environment(self):
        """What the job sees of its caller's environment."""
        return {
            "uid": self.env.uid,
            "su": self.env.su,
            "company": self.env.company.id,
            "companies": self.env.companies.ids,
            "context": dict(self.env.context),
            "ids": self.ids,
        }

    def job_fail(self, kind="value"):
        """Raise an error: a key of :data:`ERRORS`."""
        raise ERRORS[kind]()

    def job_fail_times(self, key, times, kind="value"):
        """Fail ``times`` times, then succeed; the tries are counted outside the transaction."""
        with self.env.registry.cursor() as cr:
            cr.execute("INSERT INTO test_job_ledger (key) VALUES (%s)", (f"try:{key}",))
            cr.execute("SELECT count(*) FROM test_job_ledger WHERE key = %s", (f"try:{key}",))
            tries = cr.fetchone()[0]
        if tries <= times:
            self.job_fail(kind)
        return tries

    def job_ledger(self, key, seconds=0.0, note=None):
        """Write one row to the ledger, with the times of its first and last line by the database's clock."""
        began_at = self._database_time()
        row = self.env["test.job.ledger"].create({"key": key, "note": note, "pid": os.getpid(), "began_at": began_at})
        if seconds:
            time.sleep(seconds)
        row.ended_at = self._database_time()

    def job_ledger_here(self, key, seconds=0.0):
        """Write to the ledger in which database this is."""
        self.job_ledger(f"{self.env.cr.dbname}:{key}", seconds)

    def job_witness(self, key, seconds=0.0):
        """Write to the ledger in a transaction of its own, whatever becomes of the job's."""
        with self.env.registry.cursor() as cr:
            cr.execute("INSERT INTO test_job_ledger (key) VALUES (%s)", (key,))
        time.sleep(seconds)
        self.counter = 1

    def job_ledger_then_fail(self, key, kind="value"):
        """Write to the ledger, then raise: nothing of it may stay."""
        self.job_ledger(key)
        self.job_fail(kind)

    def job_ledger_then(self, key, method, *args):
        """Write to the ledger, then call another job's method."""
        self.job_ledger(key)
        return getattr(self, method)(*args)

    def job_fail_after_commit(self, key):
        """Write to the ledger and succeed, but fail in what is to follow the commit."""
        self.job_ledger(key)
        self.env.cr.postcommit.add(lambda: self.job_fail())

    def job_hang_after_commit(self, key, seconds):
        """Write to the ledger and succeed, but wait for long in what is to follow the commit."""
        self.job_ledger(key)
        self.env.cr.postcommit.add(lambda: time.sleep(seconds))

    def job_log(self, seconds):
        """Log a line again and again."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            _logger.warning("still at it")
            time.sleep(0.01)

    def job_map(self, mebibytes, seconds):
        """Take memory that the limit of the process's own does not count."""
        with mmap.mmap(-1, mebibytes * 2**20) as hoard:
            for start in range(0, len(hoard), mmap.PAGESIZE):
                hoard[start] = 1
            time.sleep(seconds)

    def job_clock(self):
        """What time of day this host takes it for, in seconds since 1970."""
        return time.time()

    def job_increment(self):
        """Read and write the same record as many others: conflicts are certain."""
        self.counter += 1

    def job_sleep(self, seconds):
        """Wait in C."""
        time.sleep(seconds)

    def job_track(self, steps, seconds):
        """Tell its progress: ``steps`` in ``seconds``."""
        for _step in self.env["queue.job"].track_progress(range(steps), message=lambda step: f"step {step}"):
            time.sleep(seconds / steps)

    def job_sleep_in_database(self, seconds):
        """Wait in a query."""
        self.env.cr.execute("SELECT pg_sleep(%s)", (seconds,))

    def job_wait_on_socket(self, seconds):
        """Wait for a peer that never says anything."""
        left, right = socket.socketpair()
        with left, right:
            left.settimeout(seconds)
            left.recv(1)

    def job_burn(self, seconds):
        """Use the processor, in Python."""
        until = time.thread_time() + seconds
        rounds = 0
        while time.thread_time() < until:
            rounds += 1
        return rounds

    def job_spin(self):
        """Never come back, in Python."""
        while True:
            pass

    def job_hold_on(self, key, seconds):
        """Write to the ledger, then refuse to be interrupted for a while, then go on as if nothing had been."""
        self.job_ledger(key)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(BaseException):
                time.sleep(0.05)

    def job_commit_halfway(self, key, seconds):
        """Commit by itself in the middle, as some code does."""
        self.job_ledger(f"{key}:first")
        time.sleep(seconds)
        self.env.cr.commit()  # pylint: disable=invalid-commit
        self.job_ledger(f"{key}:second")

    def job_commit_then(self, key, method, *args):
        """Write to the ledger, commit, then call another job's method."""
        self.job_ledger(key)
        self.env.cr.commit()  # pylint: disable=invalid-commit
        return getattr(self, method)(*args)

    def job_close_cursor(self, key):
        """Write to the ledger, then close the cursor, as for one of its own."""
        self.job_ledger(key)
        self.env.flush_all()
        self.env.cr.close()

    def job_cancel_itself(self, key):
        """Write to the ledger, then cancel all jobs of a kind, this one among them."""
        self.job_ledger(key)
        self.env["queue.job"].sudo().search([("method_name", "=", "job_cancel_itself")]).button_cancelled()

    def job_run_now(self, job_id):
        """Run another job in the transaction of this one."""
        self.env["queue.job"].sudo().browse(job_id).run_now()

    def job_end_transaction(self, key, sql):
        """Try to end the transaction in SQL, go on as if nothing had been, and fail."""
        self.job_ledger(f"{key}:first")
        with contextlib.suppress(Exception):
            self.env.cr.execute(sql)
        self.job_ledger(f"{key}:second")
        self.job_fail()

    def job_execute(self, sql, error=None):
        """Run a statement; what it returned.

        :param error: raise this, a key of :data:`ERRORS`
        """
        cr = self.env.cr
        cr.execute(sql)
        rows = cr.fetchall() if cr.description else None
        if error:
            self.job_fail(error)
        return rows

    def job_ledger_around(self, key, sql, commit=False):
        """Write to the ledger, then run a statement; maybe commit after that, and write once more."""
        self.job_ledger(f"{key}:first")
        self.env.flush_all()
        self.env.cr.execute(sql)
        if commit:
            self.env.cr.commit()  # pylint: disable=invalid-commit
            self.env.cr.execute("RESET ALL; RESET ROLE")
            self.job_ledger(f"{key}:second")

    def job_read_only_then_write(self, key):
        """Read in one transaction, write in the next."""
        self.env.cr.execute("SET TRANSACTION READ ONLY")
        self.env.cr.execute("SELECT 1")
        self.env.cr.commit()  # pylint: disable=invalid-commit
        self.job_ledger(key)

    def job_leave_behind(self, key, fail):
        """Leave something behind that writes to the ledger with this job's environment."""
        LEFT_BEHIND.append(lambda: self.job_ledger(key))
        if fail:
            self.job_fail()

    def job_wait_for_ledger(self, key):
        """Wait until another job has written to the ledger."""
        with self.env.registry.cursor() as cr:
            cr.execute("INSERT INTO test_job_ledger (key) VALUES (%s)", (f"waits for {key}",))
        written = 0
        while not written:
            time.sleep(0.02)
            with self.env.registry.cursor() as cr:
                cr.execute("SELECT count(*) FROM test_job_ledger WHERE key = %s", (key,))
                written = cr.fetchone()[0]

    def job_process_state(self, directory=None, name=None):
        """The working directory of the process and its locale; or change them."""
        if directory:
            os.chdir(directory)
            locale.setlocale(locale.LC_ALL, name)
        return [str(Path.cwd()), locale.setlocale(locale.LC_ALL)]

    def job_change_context(self, error=None):
        """Set variables of the thread's context, also in what follows the commit; what they were before.

        :param error: raise this, a key of :data:`ERRORS`
        """
        before = [decimal.getcontext().prec, CONTEXT_VARIABLE.get()]
        decimal.getcontext().prec = 3
        CONTEXT_VARIABLE.set("of a job")
        self.env.cr.postcommit.add(lambda: CONTEXT_VARIABLE.set("after a commit"))
        if error:
            self.job_fail(error)
        return before

    def job_find(self, key):
        """Write to the ledger; then call what another job left behind, and return what comes of it."""
        self.job_ledger(key)
        errors = []
        while LEFT_BEHIND:
            try:
                LEFT_BEHIND.pop()()
            except psycopg2.Error as error:
                errors.append(str(error))
        return errors

    def job_allocate(self, mebibytes):
        """Take memory and keep it for the length of the job; 0 for without end."""
        hoard = []
        while not mebibytes or len(hoard) < mebibytes:
            hoard.append(b"x" * 2**20)
        return len(hoard)

    def job_exit_process(self, status=7):
        os._exit(status)

    def job_segfault(self):
        ctypes.string_at(0)

    def job_get(self, url, timeout=10):
        """Call an HTTP service; what it refuses for now is tried again."""
        response = requests.get(url, timeout=timeout)
        if response.status_code in (429, 503):
            raise RetryableJobError(f"{url}: {response.status_code}", seconds=1)
        response.raise_for_status()
        return response.text

    def job_enqueue(self, key, channel="root"):
        """A job that stores a job."""
        return self.with_delay(channel=channel).job_ledger(key).id

    def job_enqueue_again(self, key):
        """A job that enqueues its own call, under the key it was enqueued with."""
        return self.with_delay(identity_key=key).job_enqueue_again(key).id

    def job_enqueue_in_a_row(self, committed, kept, error=None):
        """A job that stores jobs, commits, stores more, and may fail then.

        :param committed: keys of the ones before the commit
        :param kept: keys of the others
        """
        for keys in (committed, kept):
            for key in keys:
                self.with_delay().job_ledger(key)
            if keys is committed:
                self.env.cr.commit()  # pylint: disable=invalid-commit
        if error:
            raise ERRORS[error]()

    def job_parameter(self, key):
        """A system parameter, which Odoo caches in each process."""
        return self.env["ir.config_parameter"].sudo().get_param(key)

    def job_hold_gil(self):
        """Never come back, in C, and let no other thread of the process run."""
        re.match(r"(a+)+$", "a" * 64 + "b")

    def _database_time(self):
        self.env.cr.execute("SELECT extract(epoch FROM clock_timestamp())::float")
        return self.env.cr.fetchone()[0]

    def job_sleep_then_fail(self, seconds):
        """Sleep in C, then raise an error."""
        time.sleep(seconds)
        raise ValueError("a value error")

    def job_connect_elsewhere(self):
        """Turn to a PostgreSQL server that is not there."""
        psycopg2.connect(host="/nonexistent", dbname="nowhere")
