"""What a job may raise, and what is raised about it."""

from odoo.exceptions import MissingError


class JobError(Exception):
    """Base of the errors of jobs."""


class FailedJobError(JobError):
    """The job's work failed. A marker: it is retried like any other exception."""


class RetryableJobError(JobError):
    """Ask for another try.

    :param str msg: what went wrong, kept in the job's ``exc_info``
    :param float seconds: wait before the next try; 0 means at once, ``None`` the usual back-off
    :param bool ignore_retry: leave ``attempts`` alone, so that the job never runs out of tries
    """

    seconds = None
    ignore_retry = False

    def __init__(self, msg, seconds=None, ignore_retry=False):
        super().__init__(msg)
        self.seconds = seconds
        self.ignore_retry = ignore_retry


class TimeoutJobError(JobError):
    """The attempt ran longer than the job's ``timeout``."""


class SessionEndedJobError(JobError):
    """The server ended the job's database session, because a setting bounds how long a transaction may idle or last."""


class WorkerDiedJobError(JobError):
    """The worker that ran the attempt is gone."""


class CallerGoneError(JobError, MissingError):
    """The user or the company that the job runs for was deleted; no other try follows."""
