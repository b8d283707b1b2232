import threading
from datetime import timedelta
from types import SimpleNamespace

from odoo import Command
from odoo.exceptions import AccessError
from odoo.tests import new_test_user, tagged
from odoo.tools import mute_logger
from psycopg2.errors import CheckViolation

from .. import attempts
from ..lifecycle import move
from ..models.queue_channel import DEFAULT_LIMIT
from .case import JobCase
from .common import external_env
from .tour_case import TourCase

DASHBOARD = "/odoo/background-jobs-dashboard"


def fail_for_good(cr, job, error):
    """End a pending job as a worker does whose last try raised ``error``."""
    move(cr, "claim", job.ids, worker_id="a worker")
    job.invalidate_recordset()
    claim = SimpleNamespace(id=job.id, claim_seq=job.claim_seq, attempts=job.max_retries, max_retries=job.max_retries)
    attempts.fail(cr, claim, error, duration=1.5)
    job.env["queue.job"].invalidate_model()


def error_of(target, kind):
    """What a job method raises, with its traceback."""
    try:
        target.job_fail(kind)
    except Exception as error:
        return error
    raise AssertionError(f"{kind} raises nothing")


@tagged("post_install", "-at_install", "job_worker")
class TestDashboardTours(TourCase):
    def _clean_up(self):
        with external_env(self.env) as (_cr, env):
            env["queue.limit"].search([("name", "=like", "tour%")]).unlink()
        return super()._clean_up()

    def test_a_job_is_seen_pending_then_running_then_done_without_touching_the_page(self):
        with self.committed() as (_cr, target):
            target.env["queue.limit"].create({"name": "tour", "limit": 0, "limit_before_pause": 1})
            target.with_delay(description="Watch me", channel="tour").job_write()
        with self.env.registry.cursor() as cr:  # the job's write waits for this transaction
            cr.execute("SELECT FROM test_job_target WHERE id = %s FOR UPDATE", (self.target_id,))
            release = threading.Thread(target=self._roll_back_when_asked, args=(cr,))
            release.start()
            with self.worker():
                self.start_tour(DASHBOARD, "job_worker_watch_a_job", login="admin")
            release.join(60)
        with self.committed() as (_cr, target):
            self.assertEqual(target.counter, 1)

    def _roll_back_when_asked(self, cr):
        """The tour gives the channel ``tour.release`` a limit to say that it has seen enough of the running job."""
        self.wait_until(lambda: self.count("queue.limit", [("name", "=", "tour.release")]))
        cr.rollback()

    def test_the_dashboard_says_that_no_worker_is_there(self):
        self.start_tour(DASHBOARD, "job_worker_no_worker", login="admin")

    def test_pause_and_resume_a_channel(self):
        with self.committed() as (_cr, target):
            target.env["queue.limit"].create({"name": "tour", "limit": 3})
        self.start_tour("/odoo/background-channels", "job_worker_pause_channel", login="admin")
        with self.committed() as (_cr, target):
            target.with_delay(channel="tour").job_ledger("resumed")
            target.with_delay(channel="tour.unlimited", eta=3600).job_nothing()
        with self.worker():
            self.start_tour("/odoo/background-channels", "job_worker_resume_channel", login="admin")
        with self.committed() as (_cr, target):
            self.assertEqual(target.env["test.job.ledger"].search_count([("key", "=", "resumed")]), 1)
            limits = target.env["queue.limit"].search([("name", "=like", "tour%")], order="name")
            self.assertEqual(
                [(limit.name, limit.limit, limit.rate_limit) for limit in limits],
                [("tour", 5, 0), ("tour.unlimited", 0, 7)],
            )

    def test_requeue_all_failures_of_a_kind(self):
        with self.committed() as (cr, target):
            for number in (1, 2):
                fail_for_good(cr, target.with_delay().job_ledger(f"again {number}"), error_of(target, "value"))
            fail_for_good(cr, target.with_delay(description="Another failure").job_nothing(), KeyError("another"))
        with self.worker():
            self.start_tour(DASHBOARD, "job_worker_requeue_error_group", login="admin")
            # the tour sees them leave the failed ones, which is sooner than done
            self.wait_until(lambda: self.count("test.job.ledger", [("key", "=like", "again%")]) == 2)


@tagged("post_install", "-at_install", "job_worker")
class TestDashboard(JobCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.user = new_test_user(cls.env, "dashboard_user", "job_worker.group_queue_job_user")
        cls.manager = new_test_user(cls.env, "dashboard_manager", "job_worker.group_queue_job_manager")
        cls.other_company = cls.env["res.company"].create({"name": "Another company"})

    def dashboard(self, user=None):
        return self.env["queue.dashboard"].with_user(user or self.manager)

    def numbers(self, user=None):
        return self.dashboard(user).get_now()["numbers"]

    def change(self, number, before, after):
        return after[number]["count"] - before[number]["count"]

    def fail_job(self, job, error=None):
        fail_for_good(self.cr, job, error or ValueError("wrong"))

    def test_every_number_is_the_length_of_the_list_behind_it(self):
        self.env["queue.limit"].create({"name": "test.held", "limit": 0})
        for state in ("waiting", "pending", "started", "failed", "cancelled", "done"):
            self.in_state(state)
        self.enqueue(channel="test.held")
        self.enqueue(eta=3600)
        self.set_column(self.enqueue(), "create_date", "2020-01-01")
        died = self.start(poison := self.enqueue())
        attempts.fail(self.cr, died, "WorkerDiedJobError: gone", outcome="died")
        poison.env.invalidate_all()
        self.fail_job(self.enqueue())
        dashboard = self.dashboard()
        now, history = dashboard.get_now(), dashboard.get_history("hour")
        numbers = {**now["numbers"], "done": history["done"], "ended-failed": history["failed"]}
        for bucket in history["buckets"]:
            for key in ("done", "failed"):
                numbers[f"{bucket['begin']} {key}"] = {"count": bucket[key], "domain": bucket[f"domain_{key}"]}
        for channel in now["channels"]:
            for key in ("running", "pending", "scheduled"):
                numbers[f"{channel['name']} {key}"] = {"count": channel[key], "domain": channel["domains"][key]}
        for name, number in numbers.items():
            with self.subTest(name):
                self.assertEqual(dashboard.env["queue.job"].search_count(number["domain"]), number["count"])
        for name in ("running", "pending", "scheduled", "waiting", "failed", "stuck", "overdue", "poison", "paused"):
            self.assertGreater(now["numbers"][name]["count"], 0, name)

    def test_managers_are_warned_before_the_ids_run_out(self):
        self.assertEqual(self.dashboard().get_now()["ids_used"], {})
        self.cr.execute("ALTER SEQUENCE queue_job_attempt_id_seq RESTART 1600000000")
        self.cr.execute("SELECT nextval('queue_job_attempt_id_seq')")
        self.assertEqual(list(self.dashboard().get_now()["ids_used"]), ["queue_job_attempt"])
        self.assertEqual(self.dashboard(self.user).get_now()["ids_used"], {})
        with self.assertLogs("odoo.addons.job_worker", "WARNING") as logs:
            self.env["queue.job"]._warn_of_ids_running_out()
        self.assertIn("74 % of the ids of queue_job_attempt", logs.output[0])
        self.cr.execute("ALTER TABLE queue_job_attempt ALTER id TYPE bigint")
        self.assertEqual(self.dashboard().get_now()["ids_used"], {})

    def test_each_company_counts_its_own(self):
        before, history = self.numbers(), self.dashboard().get_history("hour")
        for state in ("waiting", "pending", "started", "failed"):
            self.set_column(self.in_state(state), "company_id", self.other_company.id)
        done = self.in_state("done")
        self.set_column(done, "company_id", self.other_company.id)
        self.set_column(done, "duration", 1000.0)
        after = self.numbers()
        self.assertEqual({name: self.change(name, before, after) for name in after}, dict.fromkeys(after, 0))
        self.assertEqual(self.dashboard().get_history("hour"), history)
        names = {channel["name"] for channel in self.env["queue.channel"].with_user(self.manager).get_channels()}
        self.set_column(self.enqueue(channel="test.theirs"), "company_id", self.other_company.id)
        theirs = {channel["name"] for channel in self.env["queue.channel"].with_user(self.manager).get_channels()}
        self.assertEqual(theirs, names)

        self.manager.company_ids = [Command.link(self.other_company.id)]
        both = [self.env.company.id, self.other_company.id]
        dashboard = self.dashboard().with_context(allowed_company_ids=both)
        wider = dashboard.get_now()["numbers"]
        for name in ("waiting", "running", "failed"):
            self.assertEqual(self.change(name, after, wider), 1, name)

    def test_a_user_counts_own_jobs(self):
        for state in ("pending", "started", "failed", "done"):
            self.in_state(state)
        numbers = self.numbers(self.user)
        self.assertEqual({number["count"] for number in numbers.values()}, {0})
        dashboard = self.dashboard(self.user)
        self.assertEqual(dashboard.get_now()["channels"], [])
        self.assertEqual(dashboard.get_now()["running"], [])
        self.assertEqual(dashboard.get_now()["workers"]["each"], [])
        history = dashboard.get_history("week")
        self.assertEqual((history["done"]["count"], history["failed"]["count"], history["sample"]), (0, 0, 0))
        self.set_column(self.in_state("started"), "user_id", self.user.id)
        self.assertEqual(self.numbers(self.user)["running"]["count"], 1)
        self.assertEqual(len(dashboard.get_now()["running"]), 1)

    def test_who_is_in_no_group_of_the_queue_is_told_nothing(self):
        portal = new_test_user(self.env, "dashboard_portal", "base.group_portal")
        internal = new_test_user(self.env, "dashboard_internal", "base.group_user")
        for user in (portal, internal):
            for call in (
                lambda user=user: self.dashboard(user).get_now(),
                lambda user=user: self.dashboard(user).get_history("hour"),
                lambda user=user: self.env["queue.channel"].with_user(user).get_channels(),
                lambda user=user: self.env["queue.channel"].with_user(user).pause("root"),
                lambda user=user: self.env["queue.error.group"].with_user(user).search([]),
                lambda user=user: self.env["queue.worker"].with_user(user).search([]),
            ):
                with self.assertRaises(AccessError):
                    call()

    def test_menus_are_for_those_who_may_use_them(self):
        manager_only = ["menu_channels", "menu_workers"]
        everybody = ["menu_root", "menu_dashboard", "menu_jobs", "menu_errors"]
        for groups, visible in [
            ("job_worker.group_queue_job_manager", everybody + manager_only),
            ("job_worker.group_queue_job_user", everybody),
            ("base.group_user", []),
        ]:
            with self.subTest(groups):
                user = new_test_user(self.env, f"menus {groups}", groups)
                seen = self.env["ir.ui.menu"].with_user(user).load_menus(False)
                ours = [name for name in everybody + manager_only if self.env.ref(f"job_worker.{name}").id in seen]
                self.assertEqual(ours, visible)

    def test_only_managers_operate_channels_and_workers(self):
        channels = self.env["queue.channel"].with_user(self.user)
        for call in (
            channels.get_channels,
            lambda: channels.pause("test.users"),
            lambda: channels.resume("test.users"),
            lambda: channels.set_limit("test.users", limit=3),
        ):
            with self.assertRaises(AccessError):
                call()

    # --- channels -----------------------------------------------------------------------------------------------------

    def channel(self, name):
        channels = self.env["queue.channel"].with_user(self.manager).get_channels()
        return next(channel for channel in channels if channel["name"] == name)

    def test_resuming_puts_the_limit_back(self):
        channels = self.env["queue.channel"].with_user(self.manager)
        limit = self.env["queue.limit"].create({"name": "test.pause", "limit": 7, "rate_limit": 2})
        channels.pause("test.pause")
        channels.pause("test.pause")
        self.assertEqual((limit.limit, limit.rate_limit), (0, 2))
        channels.resume("test.pause")
        self.assertEqual((limit.limit, limit.rate_limit), (7, 2))
        channels.resume("test.pause")
        self.assertEqual(limit.limit, 7)

    def test_a_channel_without_a_record_is_operated_like_any_other(self):
        channels = self.env["queue.channel"].with_user(self.manager)
        self.enqueue(channel="test.unknown")
        self.assertEqual(self.channel("test.unknown")["limit"], DEFAULT_LIMIT)
        self.assertEqual(self.channel("test.unknown")["pending"], 1)
        channels.pause("test.unknown")
        self.assertEqual(self.channel("test.unknown")["limit"], 0)
        channels.resume("test.unknown")
        self.assertEqual(self.channel("test.unknown")["limit"], DEFAULT_LIMIT)
        channels.set_limit("test.another", rate_limit=2.5)
        self.assertEqual((self.channel("test.another")["limit"], self.channel("test.another")["rate_limit"]), (1, 2.5))
        with mute_logger("odoo.sql_db"), self.assertRaises(CheckViolation):
            channels.set_limit("test.another", limit=-1)
            self.env.flush_all()

    def test_a_channel_tells_what_its_jobs_do(self):
        options = {"channel": "test.busy"}
        self.enqueue(**options)
        self.enqueue(eta=3600, **options)
        self.in_state("started", **options)
        self.work(self.enqueue(**options))
        self.fail_job(self.enqueue(**options))
        channel = self.channel("test.busy")
        numbers = ("running", "pending", "scheduled", "done", "failed", "more")
        self.assertEqual([channel[number] for number in numbers], [1, 1, 1, 1, 1, False])

    # --- workers ------------------------------------------------------------------------------------------------------

    def worker(self, **values):
        return self.env["queue.worker"].create({"name": "test worker", "slots": 4, **values})

    def test_a_silent_worker_is_not_alive_whatever_it_said_last(self):
        worker = self.worker(last_heartbeat=self.env.cr.now())
        self.assertEqual(worker.status, "running")
        self.assertIn(worker, worker.search([("is_alive", "=", True)]))
        worker.pause_requested = True
        self.assertEqual(worker.status, "pausing")
        worker.last_heartbeat = "2020-01-01"
        self.assertEqual(worker.status, "dead")
        self.assertNotIn(worker, worker.search([("is_alive", "=", True)]))

    def test_jobs_of_a_silent_worker_are_stuck(self):
        job = self.enqueue()
        worker = self.worker(last_heartbeat=self.env.cr.now())
        before = self.numbers()
        self.start(job, worker_id=worker.name)
        self.assertEqual(self.change("stuck", before, self.numbers()), 0)
        self.assertEqual(self.dashboard().get_now()["workers"]["busy"], 1)
        worker.last_heartbeat = "2020-01-01"
        worker.flush_recordset()
        self.assertEqual(self.change("stuck", before, self.numbers()), 1)

    def test_a_worker_that_may_be_silent_for_long_is_alive_meanwhile_and_its_jobs_are_not_stuck(self):
        job = self.enqueue()
        before = self.numbers()
        silent = self.env.cr.now() - timedelta(seconds=120)
        worker = self.worker(last_heartbeat=silent, stale_after=300)
        self.start(job, worker_id=worker.name)
        self.assertEqual(worker.status, "running")
        self.assertIn(worker, worker.search([("is_alive", "=", True)]))
        self.assertEqual(self.change("stuck", before, self.numbers()), 0)
        worker.stale_after = 100
        worker.flush_recordset()
        self.assertEqual(worker.status, "dead")
        self.assertEqual(self.change("stuck", before, self.numbers()), 1)

    # --- error groups -------------------------------------------------------------------------------------------------

    def groups(self, user=None):
        self.env.invalidate_all()  # users share a cache, unlike requests
        groups = self.env["queue.error.group"].with_user(user or self.manager)
        return groups.search([("model_name", "=", "test.job.target")])

    def test_failures_of_a_kind_are_one_group(self):
        first, second = self.enqueue("job_write"), self.enqueue("job_write")
        for job in (first, second):
            self.fail_job(job, error_of(self.target, "value"))
        self.fail_job(self.enqueue("job_write"), error_of(self.target, "user"))
        self.fail_job(self.enqueue("job_read"), error_of(self.target, "value"))
        groups = self.groups()
        self.assertEqual(
            sorted((group.method_name, group.error_class, group.jobs) for group in groups),
            [
                ("job_read", "ValueError", 1),
                ("job_write", "ValueError", 2),
                ("job_write", "odoo.exceptions.UserError", 1),
            ],
        )
        group = groups.filtered(lambda group: group.jobs == 2)
        self.assertRegex(group.error_place, r"^test_job_worker/models/test_job_target\.py:\d+ in job_fail$")
        self.assertEqual(group.message, "a value error")
        self.assertEqual(group.last_job_id, second)
        self.assertLessEqual(group.first_seen, group.last_seen)
        self.assertEqual(self.env["queue.job"].search(group.open_jobs()["domain"]), first | second)

    def test_a_group_is_requeued_or_cancelled_as_a_whole(self):
        jobs = self.enqueue("job_write") | self.enqueue("job_write")
        other = self.enqueue("job_read")
        for job in jobs | other:
            self.fail_job(job)
        self.groups().filtered(lambda group: group.method_name == "job_write").button_requeue()
        self.assertEqual(self.states(jobs | other), ["pending", "pending", "failed"])
        self.groups().button_cancelled()
        self.assertEqual(self.states(jobs | other), ["pending", "pending", "cancelled"])
        self.assertFalse(self.groups())

    def test_a_group_holds_the_jobs_its_reader_may_see(self):
        mine, foreign, others = self.enqueue(), self.enqueue(), self.enqueue()
        for job in mine | foreign | others:
            self.fail_job(job)
        self.set_column(mine, "user_id", self.user.id)
        self.set_column(foreign, "company_id", self.other_company.id)
        self.assertEqual(self.groups(self.user).jobs, 1)
        self.assertEqual(self.groups(self.manager).jobs, 2)
        self.groups(self.user).button_requeue()
        self.assertEqual(self.states(mine | foreign | others), ["pending", "failed", "failed"])

    def test_what_failed_without_an_error_is_grouped_too(self):
        self.in_state("failed")
        group = self.groups()
        self.assertEqual((group.jobs, group.error_class, group.message), (1, False, "set to failed"))
