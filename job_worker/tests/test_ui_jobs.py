import json
from types import SimpleNamespace

from lxml import etree
from odoo.api import SUPERUSER_ID, Environment
from odoo.exceptions import AccessError
from odoo.tests import new_test_user, tagged

from .. import attempts
from ..delay import chain, group
from ..lifecycle import move
from ..models.queue_job_display import error_line
from .case import JobCase
from .common import external_env
from .tour_case import TourCase

TRACEBACK = """Traceback (most recent call last):
  File "/addons/sale/models/sale.py", line 12, in job_export
    raise ValueError("the warehouse is closed")
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
ValueError: the warehouse is closed
try again tomorrow
"""
JOBS = "/odoo/background-jobs"
QUEUE_USER = "tour_user"


@tagged("post_install", "-at_install", "job_worker")
class TestJobTours(TourCase):
    @classmethod
    def setUpClass(cls):
        # after the cursor of the tests is closed, which holds on to users who logged in
        cls.addClassCleanup(cls.remove_queue_user)
        super().setUpClass()
        with external_env(cls.env) as (_cr, env):
            new_test_user(env, QUEUE_USER, "job_worker.group_queue_job_user")

    @classmethod
    def remove_queue_user(cls):
        with cls.registry.cursor() as cr:
            Environment(cr, SUPERUSER_ID, {})["res.users"].search([("login", "=", QUEUE_USER)]).unlink()

    def failed_job(self, target, cr):
        job = target.with_delay(description="Export to the warehouse").job_ledger("exported")
        move(cr, "claim", job.ids, worker_id="a worker")
        job.invalidate_recordset()
        claim = SimpleNamespace(id=job.id, claim_seq=job.claim_seq, attempts=5, max_retries=5)
        attempts.fail(cr, claim, TRACEBACK, duration=7)
        return job

    def test_a_tour_fails_for_a_warning_and_for_a_request_that_failed(self):
        for script in ("console.warn('beware')", "await fetch('/job_worker/nothing')"):
            with self.subTest(script), self.assertRaises(AssertionError):
                self.browser_js("/web/login", f"(async () => {{ {script}; console.log('test successful'); }})()")

    def test_find_a_failed_job_read_why_requeue_it_see_it_done(self):
        with self.committed() as (cr, target):
            self.failed_job(target, cr)
            target.with_delay(description="Something else", eta=3600).job_nothing()
        with self.worker():
            self.start_tour(JOBS, "job_worker_requeue_failed_job", login="admin")
        with self.committed() as (_cr, target):
            self.assertEqual(target.env["test.job.ledger"].search_count([("key", "=", "exported")]), 1)

    def test_every_view_of_the_jobs_opens(self):
        with self.committed() as (_cr, target):
            target.with_delay(description="Count the stock", eta=3600).job_nothing()
        self.start_tour(JOBS, "job_worker_views", login="admin")

    def test_a_user_of_the_queue_sees_and_requeues_own_jobs_and_no_menu_of_managers(self):
        with self.committed() as (cr, target):
            user = target.env["res.users"].search([("login", "=", QUEUE_USER)])
            mine = target.with_user(user).with_delay(description="My export").job_nothing()
            target.with_delay(description="Somebody else's", eta=3600).job_nothing()
            move(cr, "cancel", mine.ids)
        self.start_tour(JOBS, "job_worker_own_jobs_only", login=QUEUE_USER)

    def test_cancel_a_running_job(self):
        with self.committed() as (_cr, target):
            job_id = target.with_delay(description="Count every grain").job_sleep_in_database(120).id
        with self.worker():
            self.start_tour(JOBS, "job_worker_cancel_running_job", login="admin")
        with self.committed() as (_cr, target):
            self.assertEqual(target.env["queue.job"].browse(job_id).state, "cancelled")

    def test_watch_the_progress_of_a_running_job(self):
        with self.committed() as (_cr, target):
            target.with_delay(description="Weigh every grain").job_track(4000, seconds=40)
        with self.worker():
            self.start_tour(JOBS, "job_worker_watch_progress", login="admin")

    def test_click_through_a_graph(self):
        with self.committed() as (_cr, target):
            chain(
                target.delayable(description="Collect the orders").job_nothing(),
                group(
                    target.delayable(description="Print the labels").job_nothing(),
                    target.delayable(description="Update the stock").job_nothing(),
                ),
                target.delayable(description="Tell the manager").job_nothing(),
            ).delay()
        self.start_tour(JOBS, "job_worker_graph", login="admin")

    def test_a_big_graph_is_folded_and_can_be_unfolded(self):
        with self.committed() as (cr, target):
            jobs = chain(
                target.delayable(description="Read the feed").job_nothing(),
                group(*[target.delayable(description=f"Import product {n}").job_succeed() for n in range(40)]),
                group(*[target.delayable(description=f"Publish shop {n}").job_ledger("x") for n in range(10)]),
            ).delay()
            move(cr, "set_done", [jobs.ids[0]])
            move(cr, "promote", jobs.ids[1:41])
            job_id = jobs.ids[0]
        self.start_tour(f"{JOBS}/{job_id}", "job_worker_big_graph", login="admin")

    def test_requeue_several_jobs_at_once_and_be_told_what_was_skipped(self):
        with self.committed() as (cr, target):
            jobs = [target.with_delay(description=f"Bulk {number}").job_nothing() for number in (1, 2)]
            jobs.append(target.with_delay(description="Bulk 3", identity_key="one only").job_nothing())
            move(cr, "cancel", [job.id for job in jobs])
            target.with_delay(description="The other", identity_key="one only").job_nothing()
        self.start_tour(JOBS, "job_worker_bulk_requeue", login="admin")

    def test_from_a_record_to_its_jobs_and_back(self):
        with self.committed() as (cr, target):
            self.failed_job(target, cr)
            view = target.env["ir.ui.view"].create(
                {
                    "name": "test.job.target.form",
                    "model": "test.job.target",
                    "priority": 1,
                    "arch": """
                        <form><sheet>
                            <div class="oe_button_box" name="button_box"><widget name="job_worker_jobs"/></div>
                            <field name="name"/>
                        </sheet></form>
                    """,
                }
            )
        try:
            self.start_tour(f"/odoo/test.job.target/{self.target_id}", "job_worker_record_button", login="admin")
        finally:
            with self.committed() as (_cr, target):
                target.env["ir.ui.view"].browse(view.id).unlink()


@tagged("post_install", "-at_install", "job_worker")
class TestJobDisplay(JobCase):
    def test_the_reason_is_the_exception_not_its_traceback(self):
        self.assertEqual(error_line(TRACEBACK), "ValueError: the warehouse is closed")
        chained = TRACEBACK + "\nDuring handling of the above exception, another exception occurred:\n\n" + TRACEBACK
        self.assertEqual(error_line(chained), "ValueError: the warehouse is closed")
        self.assertEqual(error_line("Parent job 7 failed"), "Parent job 7 failed")
        self.assertFalse(error_line(None))
        self.assertFalse(error_line(" \n"))

    def test_every_state_says_where_the_job_stands(self):
        for state, words in [
            ("waiting", "Waits for"),
            ("pending", ""),
            ("started", "Attempt 1 of 6, running for"),
            ("done", "Taken for done by hand"),
            ("failed", "Failed"),
            ("cancelled", "Cancelled"),
        ]:
            with self.subTest(state):
                job = self.in_state(state)
                self.assertTrue(job.standing.startswith(words), job.standing)
                self.assertTrue(job.standing)

    def test_a_retry_is_announced_with_its_number_and_time(self):
        job = self.enqueue("job_fail")
        claim = self.start(job)
        attempts.fail(self.cr, claim, TRACEBACK, duration=7)
        job.env.invalidate_all()
        self.assertRegex(job.standing, r"^Attempt 2 of 6, next try in (9\.\d|10) s$")
        self.assertEqual([entry["outcome"] for entry in job.timeline], ["failed"])
        self.assertEqual(job.timeline[0]["reason"], "ValueError: the warehouse is closed")

    def test_the_timeline_of_many_attempts_with_long_errors_is_short_and_says_what_is_not_kept(self):
        job = self.enqueue("job_fail", max_retries=0)
        for _try in range(60):
            attempts.fail(self.cr, self.start(job), TRACEBACK + "x" * 90_000)
            job.env.invalidate_all()
        entries = job.timeline[::-1]
        self.assertEqual([entry["number"] for entry in entries], ["1", "2-10", *map(str, range(11, 61))])
        self.assertEqual([entry["outcome"] for entry in entries[:3]], ["failed", "omitted", "failed"])
        self.assertLess(len(json.dumps(entries)), 200_000)
        self.assertLess(len(job.error_line), 1000)
        self.assertTrue(entries[0]["error"].endswith("xxx"))
        self.start(job)
        self.assertEqual(job.timeline[0]["number"], "61")

    def test_attempts_that_are_kept_as_one_are_told_as_one(self):
        job = self.enqueue()
        for _try in range(3):
            attempts.postpone(self.cr, self.start(job), "the model is missing", 5, longest=300)
        attempts.fail(self.cr, self.start(job), "ValueError: wrong")
        job.env.invalidate_all()
        self.assertEqual([entry["number"] for entry in job.timeline], ["4", "1-3"])

    def test_a_paused_channel_is_named_as_what_a_job_waits_for(self):
        self.env["queue.limit"].create({"name": "test.paused.display", "limit": 0})
        job = self.enqueue(channel="test.paused.display")
        self.assertEqual(job.standing, "The channel test.paused.display is paused")

    def test_why_no_worker_claims_is_told_where_a_job_waits_for_them_all(self):
        job = self.enqueue()
        values = {"last_heartbeat": self.env.cr.now(), "slots": 1}
        blocked = {"state": "blocked", "reason": "modules are to be upgraded: sale"}
        self.env["queue.worker"].create([{"name": "one", **values, **blocked}, {"name": "two", **values, **blocked}])
        self.assertEqual(job.standing, "No worker takes jobs: modules are to be upgraded: sale")
        self.env["queue.worker"].create({"name": "three", **values})
        job.invalidate_recordset()
        self.assertEqual(job.standing, "Next in line in the channel root")

    def test_the_call_is_told_with_the_names_of_its_records(self):
        job = self.enqueue("job_succeed")
        self.assertEqual(job.summary, f"Job succeed on Target of Test Jobs target, as {self.env.user.name}")

    def test_a_model_that_is_gone_is_told_by_its_technical_name(self):
        job = self.enqueue()
        self.set_column(job, "model_name", "gone.model")
        self.assertIn(f"gone.model #{self.target.id}", job.summary)

    def test_the_summary_tells_no_name_to_who_may_not_read_the_record(self):
        user = new_test_user(self.env, "summary", "job_worker.group_queue_job_user")
        secret = self.env["ir.config_parameter"].create({"key": "job_worker.secret", "value": "x"})
        job = secret.with_user(user).sudo().with_delay().job_whatever()
        self.assertIn("job_worker.secret", job.summary)
        self.assertIn(f"#{secret.id}", job.with_user(user).sudo(False).summary)

    def test_of_a_recordset_among_the_arguments_the_first_records_are_told(self):
        many = self.target.browse(range(1, 1001))
        job = self.target.with_delay().job_echo(many, {"ids": list(range(30))})
        records, plain = job.arguments_display.split("\n", 1)
        self.assertEqual(records, f"test.job.target({', '.join(map(str, range(1, 21)))}, …)")
        self.assertEqual(json.loads(plain), {"ids": list(range(30))})

    def test_arguments_are_readable(self):
        job = self.target.with_delay().job_echo(5, "text", target=self.target)
        self.assertEqual(
            job.arguments_display.splitlines(), ["5", '"text"', f"target = test.job.target({self.target.id})"]
        )

    def test_jobs_are_found_by_their_record(self):
        job = self.enqueue()
        found = self.env["queue.job"].search([("record_ref", "=", f"test.job.target,{self.target.id}")])
        self.assertEqual(found, job)
        self.assertIn(job, self.env["queue.job"].search([("record_ref", "ilike", str(self.target.id))]))
        self.assertFalse(self.env["queue.job"].search([("record_ref", "=", "nonsense")]))

    def test_overdue_means_due_for_long(self):
        late, fresh, later = self.enqueue(), self.enqueue(), self.enqueue(eta=3600)
        self.set_column(late, "create_date", "2020-01-01")
        found = self.env["queue.job"].search([("is_overdue", "=", True)])
        self.assertIn(late, found)
        self.assertNotIn(fresh, found)
        self.assertNotIn(later, found)
        self.assertEqual((late | fresh | later).mapped("is_overdue"), [True, False, False])

    # --- buttons ---------------------------------------------------------------------------------------------------

    def test_a_bulk_action_tells_what_it_skipped_and_why(self):
        jobs = self.in_state("failed") | self.in_state("done") | self.in_state("started") | self.in_state("pending")
        message = jobs.button_requeue()["params"]["message"]
        self.assertEqual(message, "2 jobs requeued. Skipped: 1 started, 1 pending.")

    def test_run_next_puts_a_job_before_all_others_of_its_channel(self):
        first = self.enqueue(channel="test.next", priority=1)
        job = self.enqueue(channel="test.next", eta=3600)
        job.button_run_next()
        self.assertFalse(job.scheduled_at)
        self.assertTrue(job.is_due)
        self.assertLess(job.priority, first.priority)

    def test_run_next_is_for_managers(self):
        job = self.enqueue(eta=3600)
        for groups in ("base.group_portal", "base.group_user", "job_worker.group_queue_job_user"):
            user = new_test_user(self.env, f"next {groups}", groups)
            own = self.target.with_user(user).sudo().with_delay(eta=3600).job_nothing()
            for jobs in (job, own):
                with self.subTest(groups), self.assertRaises(AccessError):
                    jobs.with_user(user).sudo(False).button_run_next()
        manager = new_test_user(self.env, "next manager", "job_worker.group_queue_job_manager")
        job.with_user(manager).sudo(False).button_run_next()
        self.assertTrue(job.is_due)

    def test_who_manages_no_jobs_has_no_button_and_no_field_to_let_one_overtake_others(self):
        for groups, manages in (
            ("job_worker.group_queue_job_user", False),
            ("job_worker.group_queue_job_manager", True),
        ):
            user = new_test_user(self.env, f"view {groups}", groups)
            for kind in ("form", "list"):
                arch = etree.fromstring(self.env["queue.job"].with_user(user).get_view(view_type=kind)["arch"])
                self.assertEqual(bool(arch.xpath("//button[@name='button_run_next']")), manages)
                for name in ("channel", "priority"):
                    (field,) = arch.xpath(f"//field[@name='{name}'][not(ancestor::field)]")
                    self.assertEqual(field.get("readonly") != "1", manages, f"{name} in the {kind}")

    def test_run_next_leaves_what_is_not_pending(self):
        job = self.in_state("done", priority=7)
        self.assertEqual(job.button_run_next()["params"]["type"], "warning")
        self.assertEqual(job.priority, 7)

    # --- graph -----------------------------------------------------------------------------------------------------

    def three_levels(self, target=None):
        target = target or self.target
        return chain(
            target.delayable().job_nothing(),
            group(*[target.delayable().job_nothing() for _number in range(3)]),
            group(*[target.delayable().job_nothing() for _number in range(2)]),
        ).delay()

    def test_a_graph_is_the_same_from_each_of_its_jobs(self):
        jobs = self.three_levels()
        first, middle, last = jobs.ids[0], jobs.ids[1:4], jobs.ids[4:]
        for job in jobs:
            data = job.graph_data()
            self.assertEqual([node["id"] for node in data["nodes"]], jobs.ids)
            self.assertEqual([list(map(list, edge)) for edge in data["edges"]], [[[first], middle], [middle, last]])
            self.assertTrue(job.has_graph)
        self.assertFalse(self.enqueue().has_graph)

    def test_jobs_of_others_have_no_name_in_a_graph(self):
        user = new_test_user(self.env, "graph", "job_worker.group_queue_job_user")
        jobs = self.three_levels()
        self.set_column(jobs[0], "user_id", user.id)
        nodes = jobs[0].with_user(user).sudo(False).graph_data()["nodes"]
        self.assertEqual([bool(node["name"]) for node in nodes], [True] + [False] * 5)
        with self.assertRaises(AccessError):
            jobs[1].with_user(user).sudo(False).graph_data()

    # --- seen from the record --------------------------------------------------------------------------------------

    def test_a_record_counts_its_jobs_by_state(self):
        for state in ("failed", "pending", "pending"):
            self.in_state(state)
        summary = self.env["queue.job"].record_jobs_summary("test.job.target", self.target.id)
        self.assertEqual(summary, {"failed": 1, "pending": 2})
        action = self.env["queue.job"].record_jobs_action("test.job.target", self.target.id)
        self.assertEqual(self.env["queue.job"].search_count(action["domain"]), 3)

    def test_only_who_may_see_jobs_is_told_of_them(self):
        self.enqueue()
        for groups in ("base.group_user", "base.group_portal"):
            user = new_test_user(self.env, f"outside {groups}", groups)
            jobs = self.env["queue.job"].with_user(user)
            self.assertEqual(jobs.record_jobs_summary("test.job.target", self.target.id), {})
        own = self.env["queue.job"].with_user(new_test_user(self.env, "own", "job_worker.group_queue_job_user"))
        self.assertEqual(own.record_jobs_summary("test.job.target", self.target.id), {})
