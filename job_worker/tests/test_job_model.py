import json
import tracemalloc
from datetime import datetime, timedelta
from itertools import product
from unittest.mock import patch
from uuid import UUID

from odoo.exceptions import UserError, ValidationError

from .. import job as job_module
from ..delay import chain
from ..job import STATES
from ..models import queue_job_actions
from .case import JobCase
from .common import JobMixin, trap_jobs

NAMES = [state for state, _label in STATES]
ALIASES = {
    "date_created": "create_date",
    "date_started": "started_at",
    "date_done": "completed_at",
    "date_cancelled": "cancelled_at",
    "exec_time": "duration",
    "eta": "scheduled_at",
    "retry": "attempts",
}
MOMENT = datetime(2026, 3, 4, 5, 6, 7)


class TestJobModel(JobMixin, JobCase):
    """Spec 2."""

    def test_the_states(self):
        self.assertEqual(NAMES, ["waiting", "pending", "started", "done", "failed", "cancelled"])

    def test_what_the_job_module_exports(self):
        exported = {
            "DEFAULT_PRIORITY": 10,
            "DEFAULT_MAX_RETRIES": 5,
            "DEFAULT_TIMEOUT": 0,
            **{name.upper(): name for name in NAMES},
        }
        self.assertEqual({name: getattr(job_module, name) for name in exported}, exported)
        self.assertTrue(callable(job_module.identity_exact))

    def test_every_field_of_the_contract_is_there(self):
        contract = {
            "char": "uuid name channel identity_key worker_id graph_uuid model_name method_name func_string",
            "json": "payload result record_ids",
            "integer": "priority attempts max_retries timeout pending_dependency_count retry",
            "many2one": "user_id company_id parent_id",
            "datetime": "scheduled_at started_at completed_at cancelled_at heartbeat date_created date_started"
            " date_done date_cancelled eta",
            "float": "duration exec_time",
            "text": "exc_info payload_display result_display",
            "one2many": "child_ids",
            "many2many": "dependency_job_ids",
            "boolean": "run_on_failure",
            "selection": "state duration_bucket",
        }
        fields = self.env["queue.job"]._fields
        for kind, names in contract.items():
            for name in names.split():
                self.assertEqual(fields[name].type, kind, name)

    def test_the_uuid_is_a_random_one(self):
        jobs = [self.enqueue() for _number in range(3)]
        self.assertEqual({UUID(job.uuid).version for job in jobs}, {4})
        self.assertEqual(len({job.uuid for job in jobs}), 3)

    def test_the_job_tells_its_call(self):
        other = self.env["test.job.target"].create({"name": "other"})
        job = (self.target | other).with_delay(description="Say it").job_echo(1, a=2)
        self.assertEqual((job.model_name, job.method_name), ("test.job.target", "job_echo"))
        self.assertEqual(job.record_ids, [self.target.id, other.id])
        self.assertEqual(job.func_string, f"test.job.target.job_echo([{self.target.id}, {other.id}])")
        self.assertEqual((job.name, job.display_name), ("Say it", "Say it"))
        self.assertEqual(
            self.env["test.job.target"].with_delay().job_echo().func_string, "test.job.target.job_echo([])"
        )

    def test_the_payload_holds_the_call(self):
        payload = self.target.with_delay().job_echo(1, a=2).payload
        call = {
            "model": "test.job.target",
            "method": "job_echo",
            "ids": self.target.ids,
            "args": [1],
            "kwargs": {"a": 2},
        }
        self.assertEqual({key: payload[key] for key in call}, call)

    def test_payload_and_result_are_readable(self):
        job = self.enqueue("job_succeed", {"ü": [1]})
        job.run_now()
        self.assertIn('"method": "job_succeed"', job.payload_display)
        self.assertEqual(job.result_display, '{\n  "ü": [\n    1\n  ]\n}')
        self.assertEqual(self.enqueue().result_display, "")
        self.assertEqual(self.enqueue().arguments_display, "")
        nothing = self.enqueue("job_succeed", False)
        nothing.run_now()
        self.assertEqual(nothing.result_display, "false")
        self.set_column(nothing, "payload", None)
        self.assertEqual((nothing.payload_display, nothing.arguments_display), ("", ""))

    def test_what_is_long_is_cut_with_its_size_told(self):
        job = self.target.with_delay().job_echo(b"x" * 2**20, "short", *range(60), key="k" * 100_000)
        self.set_column(job, "result", json.dumps("r" * 60_000))
        for name in ("payload_display", "arguments_display", "result_display"):
            with self.subTest(name):
                self.assertLess(len(job[name]), 100_000)
                self.assertRegex(job[name], r"… \([\d,]{6,} characters in all\)|\n…$")
        self.assertIn('\n"short"\n', job.arguments_display)
        many = self.env["test.job.target"].browse(range(1, 5001)).with_delay().job_nothing()
        self.assertEqual(len(many.record_ids), 5000)
        self.assertLess(len(many.func_string), 1000)
        self.assertIn("5,000 in all", many.func_string)

    def test_arguments_and_results_are_read_only_where_they_are_asked_for(self):
        jobs = self.env["queue.job"].union(*(self.enqueue("job_echo", "x" * 2**20) for _job in range(5)))
        names = {
            "func_string",
            "record_ids",
            "is_overdue",
            "standing",
            "summary",
            "arguments_display",
            "payload_display",
        }
        for kind in ("list", "kanban", "calendar", "form"):
            names |= set(jobs.get_view(view_type=kind)["models"]["queue.job"])
        for name in sorted(names):
            self.env.flush_all()
            self.env.invalidate_all()
            tracemalloc.start()
            try:
                jobs.web_search_read([("id", "in", jobs.ids)], {name: {}}, limit=80)
                _now, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            self.assertLess(peak, 2**20, name)

    def test_a_result_that_is_too_long_does_not_fail_the_job(self):
        job = self.enqueue("job_succeed", "x" * 100_000)
        job.run_now()
        self.assertEqual((job.state, job.result["__truncated__"]), ("done", True))
        self.assertEqual(job.result["__size_bytes__"], 100_002)

    def test_the_times_of_a_job_that_ran(self):
        job = self.enqueue()
        self.assertFalse(job.started_at or job.completed_at or job.duration)
        job.run_now()
        self.assert_about_now(job.started_at)
        self.assert_about_now(job.completed_at)
        self.assertGreater(job.duration, 0)
        self.assertFalse(job.cancelled_at)

    # --- aliases -----------------------------------------------------------------------------------------------------

    def test_aliases_are_readable_and_searchable(self):
        done, cancelled = self.in_state("done"), self.in_state("cancelled")
        for column in ("started_at", "completed_at", "scheduled_at", "create_date"):
            self.set_column(done, column, MOMENT)
        self.set_column(cancelled, "cancelled_at", MOMENT)
        self.set_column(done, "duration", 12.5)
        self.set_column(done, "attempts", 3)
        both = done | cancelled
        for alias, original in ALIASES.items():
            with self.subTest(alias):
                job = cancelled if alias == "date_cancelled" else done
                value = job[original]
                self.assertTrue(value)
                self.assertEqual(job[alias], value)
                self.assertEqual(job.read([alias])[0][alias], value)
                for operator in ("=", ">=", "<="):
                    self.assertIn(job, both.search([("id", "in", both.ids), (alias, operator, value)]))
                self.assertNotIn(job, both.search([("id", "in", both.ids), (alias, ">", value)]))

    def test_eta_is_writable(self):
        job = self.enqueue()
        job.eta = MOMENT
        self.assertEqual(job.scheduled_at, MOMENT)
        job.write({"eta": False})
        self.assertFalse(job.scheduled_at)

    def test_what_may_be_changed_takes_effect(self):
        job = self.enqueue()
        job.write({"scheduled_at": datetime.now() + timedelta(days=1), "priority": 3, "channel": "other"})
        self.assertEqual((job.is_due, job.priority, job.channel), (False, 3, "other"))
        job.write({"scheduled_at": False})
        self.assertTrue(job.is_due)

    def test_a_channel_that_no_index_can_hold_is_refused(self):
        job = self.enqueue()
        for channel in ("", "c" * 201):
            with self.subTest(channel), self.assertRaises(ValidationError):
                job.channel = channel

    def test_only_jobs_that_have_not_begun_may_be_changed(self):
        for state in NAMES:
            with self.subTest(state):
                job = self.in_state(state)
                if state in ("waiting", "pending"):
                    job.priority = 3
                    self.assertEqual(job.priority, 3)
                else:
                    with self.assertRaises(UserError):
                        job.priority = 3

    # --- durations ---------------------------------------------------------------------------------------------------

    def test_duration_buckets(self):
        bounds = {
            "instant": (0, 0.999),
            "fast": (1, 9.99),
            "moderate": (10, 59.9),
            "slow": (60, 299.9),
            "very_slow": (300, 1_000_000),
        }
        for bucket, durations in bounds.items():
            for duration in durations:
                with self.subTest(bucket=bucket, duration=duration):
                    job = self.in_state("done")
                    self.set_column(job, "duration", duration)
                    self.assertEqual(job.duration_bucket, bucket)
                    for other in bounds:
                        found = job.search([("id", "=", job.id), ("duration_bucket", "=", other)])
                        self.assertEqual(bool(found), other == bucket, other)

    def test_a_search_for_a_duration_bucket_finds_what_shows_it(self):
        jobs = self.env["queue.job"]
        for state in NAMES:
            jobs |= self.in_state(state)
        for duration in (0.5, 5, 50):
            job = self.in_state("failed")
            self.set_column(job, "duration", duration)
            jobs |= job
        for domain in (
            [("duration_bucket", "=", "instant")],
            [("duration_bucket", "!=", "instant")],
            [("duration_bucket", "in", ["fast", "moderate"])],
            [("duration_bucket", "not in", ["fast", "moderate"])],
            [("duration_bucket", "=", False)],
            [("duration_bucket", "!=", False)],
            [("duration_bucket", "in", [False, "fast"])],
        ):
            with self.subTest(domain):
                found = jobs.search([("id", "in", jobs.ids), *domain])
                self.assertEqual(found, jobs.filtered_domain(domain).sorted("id").sorted())
                self.assertTrue(found)

    # --- order -------------------------------------------------------------------------------------------------------

    def test_the_order_is_priority_then_schedule_with_unscheduled_first_then_id(self):
        late = self.enqueue(eta=datetime(2030, 1, 2), channel="order")
        early = self.enqueue(eta=datetime(2030, 1, 1), channel="order")
        first, second = self.enqueue(channel="order"), self.enqueue(channel="order")
        urgent = self.enqueue(eta=datetime(2031, 1, 1), channel="order", priority=1)
        found = self.env["queue.job"].search([("channel", "=", "order")])
        self.assertEqual(found.ids, (urgent | first | second | early | late).ids)

    # --- buttons -----------------------------------------------------------------------------------------------------

    def test_what_each_button_makes_of_each_state(self):
        buttons = {
            "button_requeue": {"done": "pending", "failed": "pending", "cancelled": "pending"},
            "button_set_to_done": {"waiting": "done", "pending": "done", "failed": "done", "cancelled": "done"},
            "button_set_to_failed": {"waiting": "failed", "pending": "failed", "cancelled": "failed"},
            "button_cancelled": {"waiting": "cancelled", "pending": "cancelled", "failed": "cancelled"},
        }
        for button, state in product(buttons, NAMES):
            with self.subTest(button=button, state=state):
                job = self.in_state(state)
                getattr(job, button)()
                self.assertEqual(job.state, buttons[button].get(state, state))

    def test_buttons_work_on_many_and_tell_what_they_skipped(self):
        done, pending = self.in_state("done"), self.in_state("pending")
        self.assertIs(done.button_requeue(), True)
        done = self.in_state("done")
        told = (done | pending).button_requeue()
        self.assertEqual((done.state, pending.state), ("pending", "pending"))
        self.assertEqual(told["tag"], "display_notification")

    def test_a_requeued_job_starts_over(self):
        job = self.enqueue("job_fail", max_retries=1)
        self.run_job(job)
        self.run_job(job)
        self.assertEqual(job.state, "failed")
        job.button_requeue()
        self.assertEqual((job.state, job.attempts, job.exc_info, job.completed_at), ("pending", 0, False, False))
        self.assertTrue(job.is_due)

    def test_a_requeue_skips_a_job_whose_identity_an_active_job_holds(self):
        ended = self.in_state("done", identity_key="the same")
        active = self.enqueue(identity_key="the same")
        self.assertNotEqual(ended, active)
        self.assertEqual(ended.button_requeue()["params"]["type"], "warning")
        self.assertEqual((ended.state, active.state), ("done", "pending"))

    def test_a_started_job_is_asked_to_stop(self):
        job = self.in_state("started")
        self.assertIs(job.button_cancelled(), True)
        self.assertEqual((job.state, job.cancel_requested), ("started", True))

    def test_a_job_set_to_failed_tells_by_whom(self):
        job = self.in_state("pending")
        job.button_set_to_failed()
        self.assertIn(self.env.user.name, job.exc_info)
        self.assert_about_now(job.completed_at)

    # --- the related record ------------------------------------------------------------------------------------------

    def test_open_related_action_is_a_form_for_one_record(self):
        action = self.enqueue().open_related_action()
        self.assertEqual((action["res_model"], action["res_id"]), ("test.job.target", self.target.id))
        self.assertEqual(action["views"], [[False, "form"]])

    def test_open_related_action_is_a_list_for_several_records(self):
        records = self.target | self.env["test.job.target"].create({"name": "other"})
        action = records.with_delay().job_succeed().open_related_action()
        self.assertEqual(action["domain"], [("id", "in", records.ids)])
        self.assertEqual(action["views"][0], [False, "list"])

    def test_open_related_action_leaves_out_records_that_are_gone(self):
        gone = self.env["test.job.target"].create({"name": "gone"})
        job = (self.target | gone).with_delay().job_succeed()
        gone.unlink()
        self.assertEqual(job.open_related_action()["res_id"], self.target.id)

    def test_open_related_action_without_a_record_or_model_says_so(self):
        with self.assertRaisesRegex(UserError, "no record"):
            self.env["test.job.target"].with_delay().job_succeed().open_related_action()
        job = self.enqueue()
        self.set_column(job, "model_name", "no.such")
        with self.assertRaisesRegex(UserError, "does not exist"):
            job.open_related_action()

    # --- heartbeat ---------------------------------------------------------------------------------------------------

    def test_the_heartbeat_of_a_running_job_is_its_workers(self):
        worker = self.env["queue.worker"].create({"name": "a worker", "last_heartbeat": MOMENT})
        job = self.in_state("started")
        self.assertEqual((job.worker_id, job.heartbeat), (worker.name, MOMENT))
        self.assertFalse(self.in_state("pending").heartbeat)

    # --- graphs ------------------------------------------------------------------------------------------------------

    def test_a_lone_job_has_no_graph(self):
        job = self.enqueue()
        self.assertFalse(job.graph_uuid or job.parent_id or job.child_ids or job.dependency_job_ids)
        self.assertEqual(job.pending_dependency_count, 0)

    def test_unfinished_dependencies_are_counted(self):
        first, second = self.enqueue(), self.enqueue()
        child = self.env["queue.job"].enqueue(
            "test.job.target", "job_succeed", self.target.ids, dependency_job_ids=(first | second).ids
        )
        self.assertEqual((child.state, child.pending_dependency_count), ("waiting", 2))
        first.run_now()
        self.assertEqual((child.state, child.pending_dependency_count), ("waiting", 1))
        second.run_now()
        self.assertEqual((child.state, child.pending_dependency_count), ("pending", 0))


class TestRetention(JobMixin, JobCase):
    def setUp(self):
        super().setUp()
        self.env["ir.config_parameter"].set_param("job_worker.done_job_retention_days", "30")

    def ended_days_ago(self, days, job):
        column = "cancelled_at" if job.state == "cancelled" else "completed_at"
        self.set_column(job, column, datetime.now() - timedelta(days=days))
        return job

    def vacuum(self, jobs):
        """Run the vacuum to its end, and return which of ``jobs`` are left."""
        remaining = True
        while remaining:
            _deleted, remaining = self.env["queue.job"]._vacuum_ended_jobs()
        jobs.env.invalidate_all()
        return jobs.exists()

    def test_the_default_is_thirty_days(self):
        parameter = self.env.ref("job_worker.done_job_retention_days")
        self.assertEqual((parameter.key, parameter.value), ("job_worker.done_job_retention_days", "30"))
        parameter.unlink()
        old, young = (self.ended_days_ago(days, self.in_state("done")) for days in (31, 29))
        self.assertEqual(self.vacuum(old | young), young)

    def test_ended_jobs_of_every_kind_are_deleted_once_they_are_old(self):
        for state in ("done", "failed", "cancelled"):
            with self.subTest(state):
                old, young = (self.ended_days_ago(days, self.in_state(state)) for days in (31, 29))
                self.assertEqual(self.vacuum(old | young), young)

    def test_jobs_that_have_not_ended_are_never_deleted(self):
        jobs = self.env["queue.job"]
        for state in ("waiting", "pending", "started"):
            jobs |= self.in_state(state)
        for job in jobs:
            self.set_column(job, "create_date", datetime(2000, 1, 1))
        self.assertEqual(self.vacuum(jobs), jobs)

    def test_the_days_can_be_set(self):
        self.env["ir.config_parameter"].set_param("job_worker.done_job_retention_days", "2")
        old, young = (self.ended_days_ago(days, self.in_state("done")) for days in (3, 1))
        self.assertEqual(self.vacuum(old | young), young)

    def test_jobs_that_a_live_graph_needs_are_kept(self):
        target = self.target
        with trap_jobs(self.env):
            first, second, third = chain(*(target.delayable().job_succeed() for _number in range(3))).delay()
        first.run_now()
        second.run_now()
        self.ended_days_ago(99, first)
        self.ended_days_ago(99, second)
        self.assertEqual(self.vacuum(first | second), first | second)
        third.run_now()
        self.assertFalse(self.vacuum(first | second))
        self.assertEqual(third.exists(), third)

    def test_a_job_that_another_waits_for_is_kept_without_any_graph(self):
        parents = self.ended_days_ago(99, self.in_state("failed")) | self.enqueue()
        child = self.env["queue.job"].enqueue(
            "test.job.target", "job_succeed", self.target.ids, dependency_job_ids=parents.ids, run_on_failure=True
        )
        self.assertEqual(child.state, "waiting")
        self.assertEqual(self.vacuum(parents), parents)

    def test_the_vacuum_works_in_batches(self):
        jobs = self.env["queue.job"]
        for _number in range(5):
            jobs |= self.ended_days_ago(99, self.in_state("done"))
        cron = jobs.with_context(cron_id=self.env.ref("base.autovacuum_job").id)
        with (
            patch.object(queue_job_actions, "VACUUM_BATCH", 2),
            patch.object(type(self.env["ir.cron"]), "_commit_progress", side_effect=[9.0, 0.0]) as commit,
        ):
            self.assertEqual(cron._vacuum_ended_jobs(), (4, True), "the cron's time is up after two batches")
        self.assertEqual(commit.call_count, 2)
        self.assertEqual(jobs._vacuum_ended_jobs(), (1, False))
        self.assertFalse(jobs.exists())

    def test_failed_jobs_may_be_kept_for_longer_or_for_ever(self):
        for days, kept in (("", 29), ("40", 39), ("0", 9999)):
            with self.subTest(days):
                self.env["ir.config_parameter"].set_param("job_worker.failed_job_retention_days", days)
                failed = self.ended_days_ago(kept, self.in_state("failed"))
                done, cancelled = (self.ended_days_ago(31, self.in_state(state)) for state in ("done", "cancelled"))
                self.assertEqual(self.vacuum(failed | done | cancelled), failed)
                if days != "0":
                    self.assertFalse(self.vacuum(self.ended_days_ago(kept + 2, failed)))

    def test_a_job_that_can_not_be_deleted_does_not_keep_the_others(self):
        jobs = self.env["queue.job"]
        for _number in range(5):
            jobs |= self.ended_days_ago(99, self.in_state("done"))
        self.cr.execute("CREATE TABLE keeps_jobs (job_id integer REFERENCES queue_job ON DELETE RESTRICT)")
        self.cr.execute("INSERT INTO keeps_jobs VALUES (%s), (%s)", (jobs[1].id, jobs[3].id))
        with patch.object(queue_job_actions, "VACUUM_BATCH", 2):
            self.assertEqual(self.vacuum(jobs), jobs[1] | jobs[3])

    def test_a_parameter_that_is_no_number_deletes_nothing(self):
        old = self.ended_days_ago(99, self.in_state("done"))
        for value in ("soon", "-5"):
            with self.subTest(value):
                self.env["ir.config_parameter"].set_param("job_worker.done_job_retention_days", value)
                with self.assertLogs("odoo.addons.job_worker.models.queue_job_actions", "WARNING"):
                    self.assertEqual(self.vacuum(old), old)

    def test_more_days_than_a_date_can_go_back_keep_everything(self):
        old = self.ended_days_ago(99, self.in_state("done"))
        for days in ("9999999", "99999999999"):
            with self.subTest(days):
                self.env["ir.config_parameter"].set_param("job_worker.done_job_retention_days", days)
                self.assertEqual(self.vacuum(old), old)

    def test_deleting_by_hand_keeps_to_what_has_ended(self):
        for state in NAMES:
            with self.subTest(state):
                job = self.in_state(state)
                if state in ("done", "failed", "cancelled"):
                    job.unlink()
                    self.assertFalse(job.exists())
                else:
                    with self.assertRaises(UserError):
                        job.unlink()

    def test_deleting_by_hand_leaves_jobs_that_others_wait_for(self):
        parents = self.in_state("done") | self.enqueue()
        self.env["queue.job"].enqueue("test.job.target", "job_succeed", self.target.ids, dependency_job_ids=parents.ids)
        with self.assertRaisesRegex(UserError, "others wait for"):
            parents[0].unlink()
