from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from odoo.exceptions import AccessError
from odoo.tests import new_test_user, tagged
from odoo.tools import config

from .. import home, queries
from ..home import Place, Verdict
from ..lifecycle import NOT_OF_THIS_DATABASE, TRANSITIONS
from ..worker import filestore
from .case import JobCase
from .common import external_env
from .tour_case import TourCase

NEUTRALIZE = Path(home.__file__).parent / "data" / "neutralize.sql"


def move_away(cr, **changes):
    """Let the queue be at home in another database than this one, as it is in a copy."""
    home.settle_in(cr)
    here, _home = home.find(cr)
    queries.write_home(cr, str(replace(here, **(changes or {"oid": "1"}))))


class HomeCase(JobCase):
    def setUp(self):
        super().setUp()
        self.cr.execute("DELETE FROM queue_job")
        self.cr.execute("DELETE FROM queue_worker")
        home.settle_in(self.cr)

    def judge(self):
        return home.judge(self.cr)

    def renew_uuid(self):
        self.env["ir.config_parameter"].init(force=True)
        self.env.flush_all()


class TestVerdicts(HomeCase):
    def test_the_database_that_the_jobs_were_stored_in_is_their_home(self):
        self.enqueue()
        self.assertEqual(self.judge(), Verdict.HOME)

    def test_a_new_uuid_in_place_makes_no_copy(self):
        self.enqueue()
        self.renew_uuid()
        self.assertEqual(self.judge(), Verdict.HOME)
        home.settle_in(self.cr)
        self.assertEqual(*home.find(self.cr))

    def test_another_database_or_cluster_is_not_the_home(self):
        self.enqueue()
        for changes in ({"oid": "1"}, {"system": "1"}):
            with self.subTest(**changes):
                move_away(self.cr, **changes)
                self.assertEqual(self.judge(), Verdict.UNCLEAR)

    def test_a_cluster_that_could_not_be_asked_for_its_identifier_counts_as_the_same(self):
        self.enqueue()
        move_away(self.cr, system="-")
        self.assertEqual(self.judge(), Verdict.HOME)
        home.settle_in(self.cr)
        self.assertEqual(*home.find(self.cr))

    def test_another_place_under_another_uuid_is_a_copy(self):
        self.enqueue()
        move_away(self.cr)
        self.renew_uuid()
        self.assertEqual(self.judge(), Verdict.COPY)

    def test_without_jobs_nobody_needs_to_know(self):
        self.in_state("done")
        move_away(self.cr)
        self.assertEqual(self.judge(), Verdict.IDLE)
        for state in ("waiting", "pending", "started"):
            job = self.in_state(state)
            self.assertEqual(self.judge(), Verdict.UNCLEAR, state)
            self.cr.execute("DELETE FROM queue_job WHERE id = %s", (job.id,))

    def test_a_home_that_somebody_overwrote_cancels_nothing(self):
        self.enqueue()
        for text in ("here", "a b", "a b c d"):
            queries.write_home(self.cr, text)
            self.renew_uuid()
            self.assertEqual(self.judge(), Verdict.UNCLEAR)

    def test_a_database_without_uuid_or_tables_is_incomplete(self):
        self.cr.execute("SAVEPOINT before; DELETE FROM ir_config_parameter WHERE key = 'database.uuid'")
        self.assertEqual(self.judge(), Verdict.INCOMPLETE)
        self.cr.execute("ROLLBACK TO before; ALTER TABLE queue_worker DROP CONSTRAINT queue_worker_create_uid_fkey")
        self.cr.execute("ALTER TABLE queue_worker DROP CONSTRAINT queue_worker_write_uid_fkey")
        self.assertEqual(self.judge(), Verdict.INCOMPLETE)

    def test_an_update_of_the_addon_notes_the_home_where_none_is_known(self):
        self.cr.execute("DELETE FROM ir_config_parameter WHERE key = 'job_worker.home'")
        self.assertEqual(self.judge(), Verdict.NEW)
        self.env["queue.job"].init()
        self.assertEqual(self.judge(), Verdict.HOME)
        move_away(self.cr)
        self.enqueue()
        self.env["queue.job"].init()
        self.assertEqual(self.judge(), Verdict.UNCLEAR)


class TestDecisions(HomeCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.user = new_test_user(cls.env, "home_user", "job_worker.group_queue_job_user")
        cls.manager = new_test_user(cls.env, "home_manager", "job_worker.group_queue_job_manager")

    def dashboard(self, user=None):
        return self.env["queue.dashboard"].with_user(user or self.manager)

    def test_what_is_older_than_the_uuid_belongs_to_the_original(self):
        """By the clock; and by the transaction, where the uuid was renewed by SQL, or at a server with a slow clock."""
        old = self.enqueue()
        self.env.flush_all()
        # what is written behind a savepoint is a transaction of its own
        self.cr.execute("SAVEPOINT uuid; UPDATE ir_config_parameter SET value = 'new' WHERE key = 'database.uuid'")
        self.cr.execute("SAVEPOINT job")
        new, dated = self.enqueue(), self.enqueue()
        self.assertEqual(queries.unfinished_jobs(self.cr, 10, before_uuid=True), old.ids)
        self.set_column(dated, "create_date", "2000-01-01")
        self.assertEqual(sorted(queries.unfinished_jobs(self.cr, 10, before_uuid=True)), (old | dated).ids)
        self.assertEqual(sorted(queries.unfinished_jobs(self.cr, 10, before_uuid=False)), (old | new | dated).ids)

    def test_managers_say_that_it_is_a_copy(self):
        jobs = self.in_state("waiting") | self.in_state("pending") | self.in_state("started")
        done = self.in_state("done")
        self.env["queue.worker"].create({"name": "of the original"})
        move_away(self.cr)
        self.assertTrue(self.dashboard().get_now()["is_held"])
        self.assertIn("copied or moved", jobs[1].standing)
        self.dashboard().settle_copy(is_copy=True)
        self.assertEqual(self.judge(), Verdict.HOME)
        self.assertEqual(self.states(jobs | done), ["cancelled"] * 3 + ["done"])
        self.assertEqual(set(jobs.mapped("exc_info")), {NOT_OF_THIS_DATABASE})
        self.assertFalse(self.env["queue.worker"].search([]))
        self.assertFalse(self.dashboard().get_now()["is_held"])

    def test_managers_say_that_it_was_moved(self):
        job = self.enqueue()
        move_away(self.cr)
        self.dashboard().settle_copy(is_copy=False)
        self.assertEqual((self.judge(), self.state(job)), (Verdict.HOME, "pending"))

    def test_nothing_is_decided_where_there_is_no_question(self):
        job = self.enqueue()
        self.dashboard().settle_copy(is_copy=True)
        self.assertEqual(self.state(job), "pending")

    def test_only_managers_decide(self):
        move_away(self.cr)
        with self.assertRaises(AccessError):
            self.dashboard(self.user).settle_copy(is_copy=False)


class TestNeutralizing(HomeCase):
    def neutralize(self):
        self.env.flush_all()
        self.cr.execute(NEUTRALIZE.read_text())
        self.env.invalidate_all()

    def test_the_file_takes_the_step_of_the_table(self):
        step = TRANSITIONS["disown"]
        sources = ", ".join(map(repr, step.sources))
        update = f"UPDATE queue_job SET {step.set_clause} WHERE state IN ({sources});"
        self.assertIn(update, " ".join(NEUTRALIZE.read_text().split()))

    def test_it_cancels_what_has_not_ended_and_what_comes_later_is_at_home(self):
        for in_place in (True, False):
            with self.subTest(in_place=in_place):
                jobs = self.in_state("waiting") | self.in_state("pending") | self.in_state("started")
                ended = self.in_state("done") | self.in_state("failed")
                if not in_place:
                    move_away(self.cr)
                self.neutralize()
                self.assertEqual(self.states(jobs | ended), ["cancelled"] * 3 + ["done", "failed"])
                self.assertEqual(set(jobs.mapped("exc_info")), {NOT_OF_THIS_DATABASE})
                self.enqueue()
                self.assertEqual(self.judge(), Verdict.HOME)

    def test_it_works_without_home_or_uuid(self):
        self.cr.execute("DELETE FROM ir_config_parameter WHERE key = 'database.uuid'")
        self.neutralize()
        self.cr.execute("DELETE FROM ir_config_parameter WHERE key = 'job_worker.home'")
        self.neutralize()

    def test_a_home_has_three_parts(self):
        here, _home = home.find(self.cr)
        self.assertEqual(Place.parse(str(here)), here)


class TestFilestore(JobCase):
    def test_only_files_that_ought_to_be_there_are_missed(self):
        attachment = self.env["ir.attachment"].create({"name": "a file", "raw": b"its content"})
        self.env.flush_all()
        self.assertIsNone(filestore.find_elsewhere(self.cr, self.cr.dbname))
        with patch.dict(config.options, data_dir="/elsewhere"):
            folder = filestore.find_elsewhere(self.cr, self.cr.dbname)
            self.assertEqual(folder, f"/elsewhere/filestore/{self.cr.dbname}")
            # no attachments at all, or in a storage of another addon's
            for stored_in in (None, "s3://bucket/file"):
                self.cr.execute("UPDATE ir_attachment SET store_fname = NULL")
                self.cr.execute("UPDATE ir_attachment SET store_fname = %s WHERE id = %s", (stored_in, attachment.id))
                self.assertIsNone(filestore.find_elsewhere(self.cr, self.cr.dbname))


@tagged("post_install", "-at_install", "job_worker")
class TestHomeTours(TourCase):
    def _clean_up(self):
        with external_env(self.env) as (cr, _env):
            home.settle_in(cr)
        return super()._clean_up()

    def test_the_dashboard_asks_what_the_database_is(self):
        with self.committed() as (cr, target):
            target.with_delay().job_nothing()
            move_away(cr)
        self.start_tour("/odoo/background-jobs-dashboard", "job_worker_settle_copy", login="admin")
