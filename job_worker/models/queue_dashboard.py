"""The dashboard's numbers. Each comes with the domain of the jobs behind it; the rules for jobs hold in all of them."""

from datetime import timedelta

from odoo import api, fields, models
from odoo.exceptions import AccessError
from odoo.fields import Domain

from .. import home, queries
from ..job import DONE, FAILED, PENDING, STARTED, WAITING
from .queue_channel import due_domain, scheduled_domain

# Seconds in a bucket of the chart, and number of buckets.
PERIODS = {"hour": (60, 60), "day": (1800, 48), "week": (10800, 56)}
LATENCY_SAMPLE = 1000
RUNNING_SHOWN = 6
WORKER_FIELDS = ["name", "hostname", "pid", "slots", "memory", "version", "status", "reason"]


class QueueDashboard(models.AbstractModel):
    _name = "queue.dashboard"
    _description = "Dashboard of Background Jobs"

    @api.model
    def get_now(self):
        """What the queue is doing at this moment, of the jobs the user may see.

        :return: ``numbers``: by name, dicts of ``count``, ``more`` (there are that many at least) and ``domain``;
            ``running``: the jobs that have run longest; ``channels``: as :meth:`QueueChannel.get_channels` has them,
            without what has ended; ``is_held``: whether this database was copied or moved, and nobody has said which
            yet; ``workers``: see :meth:`_workers`; ``ids_used``: for managers, the tables that have used up most of
            their ids, with the share; ``is_manager``
        :rtype: dict
        :raise AccessError: the user may not see jobs
        """
        jobs = self.env["queue.job"]._search([])
        is_manager = self.env.user.has_group("job_worker.group_queue_job_manager")
        in_use = self.env["queue.channel"]._in_use(jobs)
        channels = self.env["queue.channel"]._with_limits(in_use)
        return {
            "numbers": self._numbers(jobs, channels),
            "running": self._running(),
            "channels": channels,
            "workers": self._workers(is_manager),
            "ids_used": self.env["queue.job"]._ids_running_out() if is_manager else {},
            "is_held": home.is_held(self.env.cr),
            "is_manager": is_manager,
        }

    @api.model
    def get_history(self, period):
        """How jobs ended in the last hour, day or week, of those the user may see.

        :param str period: ``"hour"``, ``"day"`` or ``"week"``
        :return: ``buckets``: dicts of ``begin`` (UTC), ``done``, ``failed`` and the domains of both; ``done``,
            ``failed``: as in :meth:`get_now`; ``wait``, ``run``: dicts of ``p50`` and ``p95`` in seconds and a domain,
            for run of the jobs above the latter; ``sample``: how many jobs these are based on
        :rtype: dict
        :raise AccessError: the user may not see jobs
        """
        jobs = self.env["queue.job"]._search([])
        step, count = PERIODS[period]
        begin = self._begin(step, count)
        buckets = [
            {
                "begin": fields.Datetime.to_string(begin + timedelta(seconds=number * step)),
                "done": done,
                "failed": failed,
                "domain_done": self._ended_domain(DONE, begin + timedelta(seconds=number * step), step),
                "domain_failed": self._ended_domain(FAILED, begin + timedelta(seconds=number * step), step),
            }
            for number, done, failed in sorted(queries.ends_by_bucket(self.env.cr, jobs, begin, step, count))
        ]
        sample, wait_p50, wait_p95, run_p50, run_p95 = queries.latency(self.env.cr, jobs, begin, LATENCY_SAMPLE)
        done_domain = self._ended_domain(DONE, begin)
        return {
            "buckets": buckets,
            "done": self._number(sum(bucket["done"] for bucket in buckets), done_domain),
            "failed": self._number(sum(bucket["failed"] for bucket in buckets), self._ended_domain(FAILED, begin)),
            "wait": {"p50": wait_p50, "p95": wait_p95, "domain": done_domain},
            "run": {
                "p50": run_p50,
                "p95": run_p95,
                "domain": [*done_domain, ("is_latest", "=", True), ("duration", ">=", run_p95)]
                if run_p95
                else done_domain,
            },
            "sample": sample,
        }

    @api.model
    def settle_copy(self, is_copy):
        """Say what this database is, where it was copied or moved and its jobs wait for that.

        :param bool is_copy: the original goes on elsewhere, so its jobs are cancelled here; else they run here
        :raise AccessError: the user is no manager of background jobs
        """
        if not self.env.user.has_group("job_worker.group_queue_job_manager"):
            raise AccessError(self.env._("Only managers of background jobs may say what becomes of them."))
        home.decide(self.env.cr, is_copy=is_copy)
        self.env["queue.job"].invalidate_model()

    def _numbers(self, jobs, channels):
        cr = self.env.cr
        stuck = [job_id for channel in channels for job_id in channel["stuck"]]
        paused = [channel for channel in channels if not channel["limit"] and channel["pending"]]
        more = any(channel["more"] for channel in channels)
        waiting, waiting_more = queries.count_waiting(cr, jobs)
        failed, failed_more = queries.count_failed(cr, jobs)
        poison, poison_more = queries.count_poison(cr, jobs)
        held = [*due_domain(cr.now()), ("channel", "in", [channel["name"] for channel in paused])]

        def total(key):
            return sum(channel[key] for channel in channels)

        return {
            "running": self._number(total("running"), [("state", "=", STARTED)]),
            "pending": self._number(total("pending"), due_domain(cr.now()), more),
            "scheduled": self._number(
                total("scheduled"), scheduled_domain(cr.now()), more and bool(total("scheduled"))
            ),
            "waiting": self._number(waiting, [("state", "=", WAITING)], waiting_more),
            "failed": self._number(failed, [("state", "=", FAILED)], failed_more),
            "stuck": self._number(len(stuck), [("id", "in", stuck)]),
            "overdue": self._number(total("overdue"), [("is_overdue", "=", True)], more and bool(total("overdue"))),
            "poison": self._number(
                poison,
                [("attempt_ids.outcome", "=", "died"), ("state", "in", [WAITING, PENDING, STARTED, FAILED])],
                poison_more,
            ),
            "paused": self._number(
                sum(channel["pending"] for channel in paused), held, any(channel["more"] for channel in paused)
            ),
        }

    @staticmethod
    def _number(count, domain, more=False):
        return {"count": count, "more": more, "domain": domain}

    def _running(self):
        names = ["name", "channel", "worker_id", "run_time", "progress", "progress_total", "progress_message"]
        jobs = self.env["queue.job"].search_fetch(
            [("state", "=", STARTED)], ["state", "started_at", *names], order="started_at, id", limit=RUNNING_SHOWN
        )
        return jobs.read(names)

    def _workers(self, is_manager):
        """The workers in numbers; for managers, one by one as well.

        :return: ``alive``, ``slots``, ``busy`` (slots in use), ``idle`` (how many of the living don't claim),
            ``silent`` (seconds since the last sign of life of any, ``None`` if none is known), ``each``
        """
        workers = self.env["queue.worker"].sudo()
        latest = workers.search([("last_heartbeat", "!=", False)], order="last_heartbeat desc", limit=1).last_heartbeat
        taken = queries.slots_taken(self.env.cr)
        labels = dict(workers._fields["status"]._description_selection(self.env))
        each = [
            {
                **worker,
                "busy": min(taken.get(worker["name"], 0), worker["slots"]),
                "status_label": labels[worker["status"]],
            }
            for worker in workers.search([("is_alive", "=", True)]).read(WORKER_FIELDS)
        ]
        return {
            "alive": len(each),
            "slots": sum(worker["slots"] for worker in each),
            "busy": sum(worker["busy"] for worker in each),
            "idle": sum(worker["status"] != "running" for worker in each),
            "silent": (self.env.cr.now() - latest).total_seconds() if latest else None,
            "each": each if is_manager else [],
        }

    # --- domains -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _ended_domain(state, begin, seconds=None):
        domain = Domain("state", "=", state) & Domain("ended_at", ">=", fields.Datetime.to_string(begin))
        if seconds:
            domain &= Domain("ended_at", "<", fields.Datetime.to_string(begin + timedelta(seconds=seconds)))
        return list(domain)

    def _begin(self, step, count):
        """Begin of the first of ``count`` spans, on a whole multiple of their length, so that the last one is now."""
        now = self.env.cr.now().replace(microsecond=0)
        elapsed = int((now - fields.Datetime.to_datetime("2000-01-03")).total_seconds())
        return now - timedelta(seconds=elapsed % step + (count - 1) * step)
