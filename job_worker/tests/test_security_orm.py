"""Spec 7 as code inside Odoo meets it: rules, guards and groups, without HTTP."""

from odoo.exceptions import AccessError, UserError
from odoo.tests import new_test_user

from .case import JobCase

ENGINE_VALUES = {
    "state": "done",
    "payload": {"model": "res.users"},
    "user_id": 1,
    "company_id": 1,
    "model_name": "res.users",
    "method_name": "unlink",
    "worker_id": "forged",
    "result": "forged",
    "claim_seq": 1,
    "identity_key": "forged",
    "parent_id": False,
    "uuid": "forged",
    "run_on_failure": True,
    "exc_info": "forged",
    "attempts": 0,
    "max_retries": 0,
    "timeout": 0,
}


class TestSecurityOrm(JobCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.user = new_test_user(cls.env, "queue user", groups="job_worker.group_queue_job_user")
        cls.manager = new_test_user(cls.env, "queue manager", groups="job_worker.group_queue_job_manager")
        cls.other = new_test_user(cls.env, "queue other", groups="job_worker.group_queue_job_user")
        cls.nobody = new_test_user(cls.env, "queue nobody", groups="base.group_user")
        cls.other_company = cls.env["res.company"].create({"name": "elsewhere"})

    def job_of(self, user, **options):
        return self.target.with_user(user).with_delay(**options).job_succeed()

    def test_not_even_the_superuser_creates_or_rewrites_jobs(self):
        jobs = self.env["queue.job"].sudo()
        with self.assertRaises(AccessError):
            jobs.create({"uuid": "forged"})
        job = self.enqueue()
        with self.assertRaises(AccessError):
            job.copy()
        for name, value in ENGINE_VALUES.items():
            with self.subTest(name), self.assertRaises(AccessError):
                job.sudo().write({name: value})
            with self.subTest(assigned=name), self.assertRaises(AccessError):
                job[name] = value
        with self.assertRaises(AccessError):
            job.write({"priority": 1, "state": "done"})

    def test_related_fields_are_no_way_around(self):
        job = self.enqueue()
        for alias in ("date_created", "date_started", "date_done", "date_cancelled", "exec_time", "retry"):
            with self.subTest(alias), self.assertRaises(AccessError):
                job.write({alias: job[alias]})

    def test_every_stored_field_of_a_job_is_closed_but_three(self):
        stored = {name for name, field in self.env["queue.job"]._fields.items() if field.store and name != "id"}
        job = self.enqueue()
        for name in stored - {"priority", "channel", "scheduled_at"}:
            with self.subTest(name), self.assertRaises(AccessError):
                job.write({name: False})

    def test_enqueueing_needs_no_group(self):
        job = self.job_of(self.nobody)
        self.assertEqual((job.user_id, job.state), (self.nobody, "pending"))
        self.assertEqual(job.uuid, self.env["queue.job"].browse(job.id).uuid)

    def test_what_is_read_past_the_orm_is_told_only_to_who_may_read_the_job(self):
        job = self.job_of(self.user)
        for name in ("func_string", "record_ids", "arguments_display", "payload_display", "result_display", "summary"):
            with self.subTest(name):
                self.env.invalidate_all()
                job.with_user(self.user).mapped(name)
                with self.assertRaises(AccessError):
                    job.with_user(self.other).mapped(name)

    def test_who_sees_and_changes_what(self):
        job = self.job_of(self.user)
        for user, may in ((self.user, True), (self.manager, True), (self.other, False), (self.nobody, False)):
            with self.subTest(user.name):
                self.assertEqual(job.with_user(user).has_access("read"), may)
                self.assertEqual(job.with_user(user).has_access("write"), may)
                self.assertFalse(job.with_user(user).has_access("create"))
        for user, may in ((self.user, False), (self.manager, True), (self.other, False), (self.nobody, False)):
            self.assertEqual(job.with_user(user).has_access("unlink"), may)

    def test_the_rule_of_companies_holds_for_managers_too(self):
        job = self.job_of(self.user)
        self.set_column(job, "company_id", self.other_company.id)
        for user in (self.user, self.manager):
            self.assertFalse(job.with_user(user).has_access("read"))
            user.company_ids |= self.other_company
            here = job.with_user(user).with_context(allowed_company_ids=user.company_id.ids)
            there = job.with_user(user).with_context(allowed_company_ids=user.company_ids.ids)
            self.assertEqual((here.has_access("read"), there.has_access("read")), (False, True))

    def test_a_job_without_company_is_in_all(self):
        job = self.job_of(self.user)
        self.set_column(job, "company_id", None)
        self.assertTrue(job.with_user(self.user).has_access("read"))

    def test_buttons_check_access_before_they_do_anything(self):
        mine, others = self.job_of(self.user), self.job_of(self.other)
        for button in (
            "button_requeue", "button_cancelled", "button_set_to_done", "button_set_to_failed", "button_run_next",
        ):  # fmt: skip
            for user, jobs in ((self.nobody, mine), (self.user, others), (self.user, mine | others)):
                with self.subTest(button=button, user=user.name), self.assertRaises(AccessError):
                    getattr(jobs.with_user(user), button)()
        self.assertEqual(self.states(mine | others), ["pending", "pending"])

    def test_a_manager_requeues_as_whom_the_job_was_enqueued(self):
        job = self.job_of(self.user)
        job.button_set_to_failed()
        job.with_user(self.manager).button_requeue()
        self.assertEqual((job.user_id, job.payload["uid"]), (self.user, self.user.id))

    def test_a_user_who_requeues_a_graph_moves_the_jobs_of_others_by_its_rules_only(self):
        parent, child = self.job_of(self.user), self.job_of(self.other)
        self.set_column(child, "parent_id", parent.id)
        with self.assertRaises(AccessError):
            child.with_user(self.user).button_cancelled()
        parent.with_user(self.user).button_cancelled()
        self.assertEqual(self.states(parent | child), ["cancelled", "cancelled"])

    def test_jobs_are_deleted_by_managers_and_only_when_they_ended(self):
        job = self.job_of(self.user)
        with self.assertRaises(AccessError):
            job.with_user(self.user).unlink()
        with self.assertRaises(UserError):
            job.with_user(self.manager).unlink()
        job.button_cancelled()
        job.with_user(self.manager).unlink()
        self.assertFalse(job.exists())

    def test_every_model_says_who_may_use_it(self):
        models = [
            name
            for name, model in self.env.registry.items()
            if name.startswith("queue.") and not model._abstract and not model._transient
        ]
        described = set(self.env["ir.model.access"].search([("model_id.model", "in", models)]).mapped("model_id.model"))
        self.assertEqual(described, set(models))
        open_to_all = self.env["ir.model.access"].search([("model_id.model", "in", models), ("group_id", "=", False)])
        self.assertFalse(open_to_all)

    def test_the_manager_group_implies_the_user_group_and_that_an_internal_user(self):
        self.assertTrue(self.manager.has_group("job_worker.group_queue_job_user"))
        self.assertTrue(self.user.has_group("base.group_user"))
        self.assertFalse(self.user.has_group("job_worker.group_queue_job_manager"))

    def test_the_user_of_a_job_may_be_deleted_which_ends_what_it_could_do(self):
        job = self.job_of(self.other, max_retries=1)
        self.other.unlink()
        self.env.invalidate_all()
        self.assertFalse(job.user_id)
        self.assertIn("not found", str(self.run_job(job)))
        self.assertFalse(job.with_user(self.user).has_access("read"))
