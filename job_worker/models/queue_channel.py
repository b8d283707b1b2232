"""Channels as people see and operate them: those with a limit of their own, and those that are just used."""

from collections import defaultdict
from datetime import timedelta

from odoo import api, fields, models

from .. import queries
from ..job import FAILED, OVERDUE_SECONDS, PENDING, STARTED

DEFAULT_LIMIT = 1
FAILURE_SHARE_SECONDS = 3600
STUCK_GRACE_SECONDS = 60


class QueueChannel(models.AbstractModel):
    """A channel is a name: it has no record unless somebody gave it a limit."""

    _name = "queue.channel"
    _description = "Channel of Background Jobs"

    @api.model
    def get_channels(self):
        """Every channel with a limit, with jobs that have not ended, or with jobs that ended in the last hour.

        :return: dicts of ``name``, ``limit`` and ``rate_limit`` (as in ``queue.limit``), ``running``, ``pending``,
            ``more`` (there may be more pending ones), ``scheduled``, ``oldest`` (seconds the oldest pending job has
            waited), ``overdue``, ``stuck`` (ids), ``done`` and ``failed`` (in the last hour), ``starts`` (in the last
            second), ``domains`` (of the jobs behind running, pending, scheduled and failed)
        :rtype: list[dict]
        :raise AccessError: the user may not edit limits
        """
        self.env["queue.limit"].check_access("write")
        jobs = self.env["queue.job"]._search([])
        cr = self.env.cr
        channels = self._in_use(jobs)
        for name, done, failed in queries.ends_by_channel(cr, jobs, FAILURE_SHARE_SECONDS):
            channels[name].update(done=done, failed=failed)
        for name, starts in queries.starts_by_channel(cr, jobs).items():
            channels[name]["starts"] = starts
        for name in self.env["queue.limit"].search([("name", "not in", list(channels))]).mapped("name"):
            channels[name]  # the default makes the row of a channel nobody uses right now
        return self._with_limits(channels)

    @api.model
    def pause(self, name):
        """Start no more jobs of a channel; what is running goes on. :meth:`resume` puts the limit back."""
        limit = self._record(name)
        if not limit:
            limit.create({"name": name, "limit": 0, "limit_before_pause": DEFAULT_LIMIT})
        elif limit.limit:
            limit.write({"limit": 0, "limit_before_pause": limit.limit})

    @api.model
    def resume(self, name):
        """Give a paused channel the limit back that it had before."""
        limit = self._record(name)
        if limit and not limit.limit:
            limit.limit = limit.limit_before_pause or DEFAULT_LIMIT

    @api.model
    def set_limit(self, name, limit=None, rate_limit=None):
        """Change the limits of a channel, whether or not it has a record.

        :param str name: channel
        :param int limit: jobs that may run at once; ``None`` leaves it as it is
        :param float rate_limit: starts per second, 0 for no limit; ``None`` leaves it as it is
        :raise AccessError: the user may not edit limits
        """
        values = {"limit": limit, "rate_limit": rate_limit}
        values = {field: value for field, value in values.items() if value is not None}
        if record := self._record(name):
            record.write(values)
        else:
            record.create({"name": name, **values})

    def _record(self, name):
        limits = self.env["queue.limit"]
        limits.check_access("write")
        return limits.search([("name", "=", name)])

    @api.model
    def _in_use(self, jobs):
        """What is going on now, by channel, without the limits.

        :param jobs: query of the jobs to look at
        :rtype: defaultdict
        """
        channels = defaultdict(
            lambda: {
                "running": 0, "stuck": [], "pending": 0, "more": False, "oldest": None, "overdue": 0, "scheduled": 0,
                "done": 0, "failed": 0, "starts": 0,
            }
        )  # fmt: skip
        cr = self.env.cr
        for name, running, stuck in queries.running_by_channel(cr, jobs, STUCK_GRACE_SECONDS):
            channels[name].update(running=running, stuck=stuck or [])
        for name, pending, more, oldest, overdue in queries.backlog_by_channel(cr, jobs, OVERDUE_SECONDS):
            channels[name].update(pending=pending, more=more, oldest=oldest, overdue=overdue)
        for name, due, to_come, more, oldest, overdue in queries.scheduled_by_channel(cr, jobs, OVERDUE_SECONDS):
            channel = channels[name]
            channel["pending"] += due
            channel["scheduled"] = to_come
            channel["more"] = channel["more"] or more
            channel["overdue"] += overdue
            if due:
                channel["oldest"] = max(channel["oldest"] or 0, oldest)
        return channels

    @api.model
    def _with_limits(self, channels):
        """Rows for the client, by name; a channel without a record has the default limit."""
        limits = {limit.name: limit for limit in self.env["queue.limit"].search([("name", "in", list(channels))])}
        now = self.env.cr.now()
        hour_ago = fields.Datetime.to_string(now - timedelta(seconds=FAILURE_SHARE_SECONDS))
        return [
            {
                "name": name,
                "limit": limits[name].limit if name in limits else DEFAULT_LIMIT,
                "rate_limit": limits[name].rate_limit if name in limits else 0,
                "domains": {
                    "running": [("channel", "=", name), ("state", "=", STARTED)],
                    "pending": [("channel", "=", name), *due_domain(now)],
                    "scheduled": [("channel", "=", name), *scheduled_domain(now)],
                    "failed": [("channel", "=", name), ("state", "=", FAILED), ("ended_at", ">=", hour_ago)],
                },
                **channels[name],
            }
            for name in sorted(channels)
        ]


def due_domain(now):
    """Pending jobs that could run now."""
    return [
        ("state", "=", PENDING),
        "|",
        ("scheduled_at", "=", False),
        ("scheduled_at", "<=", fields.Datetime.to_string(now)),
    ]


def scheduled_domain(now):
    """Pending jobs that are to run later."""
    return [("state", "=", PENDING), ("scheduled_at", ">", fields.Datetime.to_string(now))]
