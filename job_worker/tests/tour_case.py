import logging
import re
import threading
import time
from contextlib import contextmanager
from unittest.mock import patch

from odoo.modules.registry import DummyRLock, Registry
from odoo.tests import HttpCase

from .common import external_env

POLL_SECONDS = 0.1


class Complaints(logging.Handler):
    """Collects warnings of the browser's console and of requests, and the requests that were answered with an error."""

    REFUSED = re.compile(r'HTTP/[\d.]+" [45]\d\d ')

    def __init__(self):
        super().__init__()
        self.found = []

    def emit(self, record):
        message = record.getMessage()
        if record.levelno >= logging.WARNING or self.REFUSED.search(message):
            self.found.append(message)


class TourCase(HttpCase):
    """In a real browser, with a real worker: so everything here is committed, and removed in the end.

    Odoo fails a tour for errors on the console; here warnings and requests that failed do so, too.
    """

    registry_test_mode = False

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # what HttpCase has written but not committed, requests would wait for
        type(cls.cr).rollback(cls.cr)
        # held by whoever runs the tests; requests would wait for it too
        cls.startClassPatcher(patch.object(Registry, "_lock", DummyRLock()))

    def setUp(self):
        super().setUp()
        if "test.job.target" not in self.env:
            self.skipTest("the addon test_job_worker is not installed")
        self.addCleanup(self._clean_up)
        with external_env(self.env) as (_cr, env):
            self.target_id = env["test.job.target"].create({"name": "A record with jobs"}).id

    def _clean_up(self):
        with external_env(self.env) as (cr, env):
            cr.execute("DELETE FROM queue_job")
            cr.execute("DELETE FROM test_job_ledger")
            env["test.job.target"].browse(self.target_id).unlink()

    def browser_js(self, *args, **options):
        complaints = Complaints()
        loggers = [self._logger.getChild("browser"), logging.getLogger("odoo.http"), logging.getLogger("werkzeug")]
        for logger in loggers:
            logger.addHandler(complaints)
        try:
            result = super().browser_js(*args, **options)
        finally:
            for logger in loggers:
                logger.removeHandler(complaints)
        self.assertFalse(complaints.found)
        return result

    @contextmanager
    def committed(self):
        """``(cr, record to enqueue jobs on)``; committed at the end of the block."""
        with external_env(self.env) as (cr, env):
            yield cr, env["test.job.target"].browse(self.target_id)

    def count(self, model, domain):
        """How many records are committed."""
        with self.committed() as (_cr, target):
            return target.env[model].search_count(domain)

    def wait_until(self, condition, seconds=60):
        """Ask again and again, until ``condition()`` is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), deadline, "it did not come to that")
            threading.Event().wait(POLL_SECONDS)

    @contextmanager
    def worker(self):
        """A worker that runs jobs while the block runs."""
        from ..worker import QueueWorker  # models and their tests get along without

        stop = threading.Event()
        thread = threading.Thread(
            target=QueueWorker(self.env.cr.dbname, concurrency=1, stop_event=stop).run, name="worker of a tour"
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)
            self.assertFalse(thread.is_alive(), "the worker did not stop")
