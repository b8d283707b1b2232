"""Test kit for addons that enqueue jobs; supported like the rest of the addon's interface.

with trap_jobs(self.env) as trap:
    orders.action_confirm()
    trap.assert_enqueued_job("sale.order", "send_mail", args=("confirmed",), channel="mail")
    trap.perform_enqueued_jobs()
"""

from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from unittest.mock import patch

from odoo import SUPERUSER_ID, api
from odoo.sql_db import db_connect

from ..delay import as_schedule
from ..job import storable_key
from ..models.job_serialization import load_call

SLACK_SECONDS = 5
OPTIONS = ("priority", "channel", "eta", "max_retries", "description", "identity_key", "timeout")
FILTERS = ("record_ids", *OPTIONS)
_ANY = object()


@contextmanager
def trap_jobs(env):
    """Keep the jobs that are enqueued in the block from running, and look at them.

    They are stored as always, so that records, identity keys and graphs are real; neither a worker is woken nor, in
    sync mode, anything run, until :meth:`JobTrap.perform_enqueued_jobs`.

    :param env: environment of the test
    :rtype: JobTrap
    """
    trap = JobTrap(env)
    with patch.object(env.registry["queue.job"], "_hand_over", lambda _model, job_ids: trap._catch(job_ids)):
        yield trap


class JobTrap:
    """The jobs that were enqueued within :func:`trap_jobs`."""

    def __init__(self, env):
        self._jobs = env["queue.job"].sudo()

    def _catch(self, job_ids):
        self._jobs += self._jobs.browse(job_ids)

    @property
    def enqueued_jobs(self):
        """What was trapped, parents before their children.

        :return: dictionaries with ``job_record`` (the ``queue.job``), ``model_name``, ``method_name``, ``record_ids``
            (list), ``args`` (tuple), ``kwargs``, ``priority``, ``channel``, ``eta`` (naive UTC datetime or ``None``),
            ``max_retries``, ``description``, ``identity_key`` (or ``None``) and ``timeout``
        :rtype: list[dict]
        """
        return [self._describe(job) for job in self._jobs]

    @staticmethod
    def _describe(job):
        args, kwargs = load_call(job.payload["args"], job.payload["kwargs"], job.env)
        return {
            "job_record": job,
            "model_name": job.model_name,
            "method_name": job.method_name,
            "record_ids": job.payload["ids"],
            "args": tuple(args),
            "kwargs": kwargs,
            "priority": job.priority,
            "channel": job.channel,
            "eta": job.eta or None,
            "max_retries": job.max_retries,
            "description": job.name,
            "identity_key": job.identity_key or None,
            "timeout": job.timeout,
        }

    def assert_jobs_count(self, expected, model=None, method=None):
        """Fail unless exactly ``expected`` jobs were trapped.

        :param str model: count the jobs of this model only
        :param str method: count the jobs of this method only
        """
        jobs = self.enqueued_jobs
        found = [job for job in jobs if model in (None, job["model_name"]) and method in (None, job["method_name"])]
        if len(found) != expected:
            what = f" of {model or 'any model'}.{method or 'any method'}()" if model or method else ""
            raise AssertionError(f"expected {_jobs(expected)}{what}, trapped {len(found)}\n{_list(jobs)}")

    def assert_enqueued_job(self, model, method, args=None, kwargs=None, **filters):
        """Fail unless a job was trapped for this call.

        :param str model: name of the model
        :param str method: name of the method
        :param args: positional arguments; ``None`` for any
        :param dict kwargs: keyword arguments; ``None`` for any
        :param filters: ``record_ids``, ``priority``, ``channel``, ``eta``, ``max_retries``, ``description``,
            ``identity_key`` or ``timeout``. An ``eta`` given as timedelta or seconds means as long from now, give
            or take 5 s.
        :return: the first job that matches
        :rtype: dict
        :raise TypeError: an unknown filter
        """
        if unknown := sorted(set(filters) - set(FILTERS)):
            raise TypeError(f"there is no filter {', '.join(unknown)}; there are {', '.join(FILTERS)}")
        wanted = {"model_name": model, "method_name": method, **filters}
        if args is not None:
            wanted["args"] = tuple(args)
        if kwargs is not None:
            wanted["kwargs"] = dict(kwargs)
        jobs = self.enqueued_jobs
        closest, fewest = None, None
        for job in jobs:
            differences = [name for name, value in wanted.items() if not _equals(name, job[name], value)]
            if not differences:
                return job
            # the wrong method is further off than any wrong option
            distance = (len({"model_name", "method_name"} & set(differences)), len(differences))
            if fewest is None or distance < fewest[0]:
                closest, fewest = job, (distance, differences)
        raise AssertionError(
            "\n".join(
                [
                    f"expected a job {_call(wanted)}{_options(wanted, filters)}, none of those trapped matches",
                    _list(jobs),
                    *([f"closest: {_call(closest)}, but"] if closest else []),
                    *(
                        f"    {name}: expected {wanted[name]!r}, was {closest[name]!r}"
                        for name in (fewest[1] if fewest else ())
                    ),
                ]
            )
        )

    def perform_enqueued_jobs(self, raise_errors=True):
        """Run the trapped jobs that have not ended, each once and after those it waits for, in this transaction.

        What follows is as in a worker: retries, failures and what they mean for the jobs after them. Call again to run
        what is to be retried, whenever that is due, and the jobs that were enqueued by the jobs.

        :param bool raise_errors: let the error of a job through, as :meth:`queue.job.run_now` does; otherwise it is
            only found in the job, and the rest is run
        """
        for job in self._jobs:  # parents have been stored before their children
            if not job._is_pending():
                continue
            try:
                job.run_now()
            except Exception:
                if raise_errors:
                    raise


def _equals(name, actual, wanted):
    if name == "record_ids":
        return sorted(actual) == sorted(wanted)
    if name == "eta" and wanted:
        moment, seconds = as_schedule(wanted)
        if moment:
            return actual == moment
        return bool(actual) and abs(actual - _now() - timedelta(seconds=seconds)) <= timedelta(seconds=SLACK_SECONDS)
    if name == "identity_key":
        return actual == storable_key(wanted)
    if name == "eta":
        return actual is None
    return actual == wanted


def _jobs(count):
    return f"{count} job{'' if count == 1 else 's'}"


def _list(jobs):
    if not jobs:
        return "no job was trapped"
    lines = Counter(f"    {_call(job)}{_options(job, OPTIONS)}" for job in jobs)
    return "\n".join(
        [
            f"trapped {_jobs(len(jobs))}:",
            *(line if count == 1 else f"{line}  ({count} times)" for line, count in lines.items()),
        ]
    )


def _call(job):
    arguments = [repr(value) for value in job["args"]] if "args" in job else ["…"]
    arguments += [f"{name}={value!r}" for name, value in job.get("kwargs", {}).items()]
    records = f"({', '.join(map(str, job['record_ids']))})" if "record_ids" in job else ""
    return f"{job['model_name']}{records}.{job['method_name']}({', '.join(arguments)})"


def _options(job, names):
    shown = [f"{name}={job[name]!r}" for name in names if name in OPTIONS and job[name] is not None]
    return f" [{', '.join(shown)}]" if shown else ""


@contextmanager
def external_env(env, uid=SUPERUSER_ID):
    """A cursor and an environment of their own: another database session, for tests of several transactions.

    Committed at the end of the block, rolled back if it raises. What it commits stays: clean up after it. It sees
    nothing of what the test itself has not committed, and waits for rows that the test has locked.

    :param env: environment of the test
    :param int uid: user of the new environment
    :return: ``(cr, env)``
    """
    # not from the registry, whose cursors share the test's transaction where HTTP requests are tested
    with db_connect(env.cr.dbname).cursor() as cr:
        yield cr, api.Environment(cr, uid, {})


def _now():
    return datetime.now(timezone.utc).replace(tzinfo=None)


def now_with_slack(seconds=SLACK_SECONDS):
    """Bounds for a moment that is about now, for :func:`assert_dt_between`.

    :param float seconds: how far off it may be
    :return: ``(lower, upper)``, naive UTC datetimes
    """
    now, slack = _now(), timedelta(seconds=seconds)
    return now - slack, now + slack


def assert_dt_between(testcase, value, lower, upper):
    """Fail unless ``lower <= value <= upper``.

    :param testcase: the running :class:`unittest.TestCase`
    :param value: datetime, naive UTC as fields have it
    """
    testcase.assertTrue(value, f"expected a moment between {lower} and {upper}, there is none: {value!r}")
    testcase.assertTrue(lower <= value <= upper, f"expected a moment between {lower} and {upper}, it is {value}")


class JobMixin:
    """The kit as methods of a test class that has ``self.env``."""

    def trap_jobs(self):
        """See :func:`trap_jobs`."""
        return trap_jobs(self.env)

    def external_env(self, uid=SUPERUSER_ID):
        """See :func:`external_env`."""
        return external_env(self.env, uid)

    def assert_dt_between(self, value, lower, upper):
        """See :func:`assert_dt_between`."""
        assert_dt_between(self, value, lower, upper)

    def assert_about_now(self, value, seconds=SLACK_SECONDS):
        """Fail unless ``value`` is a moment within ``seconds`` of now."""
        assert_dt_between(self, value, *now_with_slack(seconds))

    def perform_jobs(self, jobs):
        """Run pending jobs in this transaction, each after those it waits for.

        :param jobs: recordset of ``queue.job``
        """
        for job in jobs.sorted("id"):
            if job._is_pending():
                job.run_now()
