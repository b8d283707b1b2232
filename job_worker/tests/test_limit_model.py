import math

from odoo.tests import TransactionCase, tagged
from odoo.tools import mute_logger
from psycopg2 import Error


@tagged("post_install", "-at_install")
class TestLimitModel(TransactionCase):
    """Spec 4: what a limit may be. How limits hold is shown by the tests with workers."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.Limit = cls.env["queue.limit"]

    def assert_refused(self, **values):
        with self.subTest(**values), self.assertRaises(Error), mute_logger("odoo.sql_db"):
            self.Limit.create({"name": "refused", **values})
            self.env.flush_all()

    def test_a_channel_has_one_limit(self):
        self.Limit.create({"name": "twice"})
        self.assert_refused(name="twice")

    def test_a_limit_needs_a_name(self):
        self.assert_refused(name=False)

    def test_a_name_is_no_longer_than_that_of_a_channel(self):
        self.Limit.create({"name": "n" * 200})
        self.assert_refused(name="n" * 201)

    def test_the_default_is_one_job_at_a_time_and_no_rate(self):
        limit = self.Limit.create({"name": "defaults"})
        self.assertEqual((limit.limit, limit.rate_limit), (1, 0))

    def test_root_ships_with_a_limit(self):
        root = self.env.ref("job_worker.queue_limit_root")
        self.assertEqual(root.name, "root")
        self.assertGreater(root.limit, 1)

    def test_zero_pauses_and_is_allowed(self):
        self.assertEqual(self.Limit.create({"name": "paused", "limit": 0}).limit, 0)

    def test_a_limit_is_not_negative(self):
        self.assert_refused(limit=-1)

    def test_a_rate_is_not_negative(self):
        self.assert_refused(rate_limit=-0.5)

    def test_rates_from_one_a_day_to_a_million_a_second_are_kept(self):
        for rate in (0, 1 / 86400, 0.5, 1, 2.5, 100, 1_000_000):
            with self.subTest(rate):
                limit = self.Limit.create({"name": f"rate {rate}", "rate_limit": rate})
                self.env.flush_all()
                limit.invalidate_recordset()
                self.assertEqual(limit.rate_limit, rate)

    def test_a_rate_that_no_worker_could_reckon_with_is_refused(self):
        for rate in (math.nan, math.inf, 1e300, 1e-300):
            self.assert_refused(rate_limit=rate)

    def test_limits_that_no_database_can_hold_are_refused(self):
        self.assert_refused(limit=2**40)
