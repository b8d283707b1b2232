from datetime import datetime, timedelta
from unittest.mock import patch

from .case import JobCase
from odoo.addons.job_worker.delay import chain, group


class TestStatements(JobCase):
    """Section 1.2 and the promise of cheap enqueueing: how many SQL statements storing takes."""

    def statements(self, enqueue):
        self.env.registry.cache_invalidated.clear()  # by other tests: what is not to be told to other processes
        enqueue()  # fill the caches
        self.env.flush_all()
        self.cr.flush()
        before = self.cr.sql_log_count
        jobs = enqueue()
        self.cr.flush()  # as at the commit
        return self.cr.sql_log_count - before, jobs

    def test_a_single_with_delay_is_one_insert_and_a_notification_for_each_transaction(self):
        count, _job = self.statements(lambda: self.target.with_delay().job_echo(1))
        self.assertEqual(count, 2)
        count, _jobs = self.statements(
            lambda: [self.target.with_delay().job_echo(self.target.search_count([])) for _index in range(10)]
        )
        self.assertEqual(count, 10 + 10 + 1)

    def test_an_identity_key_costs_one_look_up(self):
        keys = iter("abc")
        count, _job = self.statements(lambda: self.target.with_delay(identity_key=next(keys)).job_echo(1))
        self.assertEqual(count, 3)

    def test_a_group_of_10000_jobs_is_stored_in_less_than_40_statements(self):
        before = self.cr.sql_log_count
        jobs = group(*(self.target.delayable().job_echo(number) for number in range(10_000))).delay()
        self.cr.flush()
        count = self.cr.sql_log_count - before
        self.assertEqual(len(jobs), 10_000)
        self.assertLess(count, 40)

    def test_a_graph_of_10000_jobs_with_edges_keys_and_own_values_is_stored_in_less_than_40_statements(self):
        target = self.target.with_context(test_job_tag="many")
        parts = [target.delayable(identity_key=f"many {number}").job_echo(number) for number in range(10_000)]
        before = self.cr.sql_log_count
        jobs = chain(group(*parts[:4999]), parts[4999], group(*parts[5000:9999]), parts[9999]).delay()
        self.cr.flush()
        count = self.cr.sql_log_count - before
        self.assertEqual(len(jobs), 10_000)
        self.assertLess(count, 40)
        self.env.invalidate_all()
        self.assertEqual(len(jobs[4999].dependency_job_ids), 4999)
        self.assertEqual(jobs[5000:9999].parent_id, jobs[4999])
        self.assertEqual(len(jobs[9999].dependency_job_ids), 4999)
        self.assertEqual(set(jobs.mapped("test_tag")), {"many"})


class TestOneAndMany(JobCase):
    """Many jobs are stored in another way than one: what is stored must be the same."""

    # of the job itself, of its place in the graph, or of the moment
    OWN = {"id", "uuid", "graph_uuid", "scheduled_at"}
    TEXTS = ("plain", "tab\tnew\nline\rreturn", "back\\slash", r"\N", r"\.", "\u2028 é \U0001f600 \x01", " ", "'\"$1%s")

    def row(self, job):
        self.env.cr.execute("SELECT * FROM queue_job WHERE id = %s", job.ids)
        return {name: value for name, value in self.env.cr.dictfetchone().items() if name not in self.OWN}

    def test_texts_and_values_are_the_same(self):
        for text in self.TEXTS:
            options = {"description": text, "channel": f"c{text}", "priority": -3, "max_retries": 0, "timeout": 7}
            target = self.target.with_context(test_job_tag=text)
            one = target.with_delay(**options).job_echo(text, [text], key=text)
            many = group(*(target.delayable(**options).job_echo(text, [text], key=text) for _index in range(2))).delay()
            in_a_row = [target.with_delay(**options).job_echo(text, [text], key=text) for _index in range(3)]
            for job in (*many, *in_a_row):
                self.assertEqual(self.row(job), self.row(one))
            self.assertEqual(many[0].name, text)

    def test_schedules_are_the_same(self):
        for eta in (
            None,
            0,
            -60,
            3600,
            timedelta(days=2),
            datetime(2020, 1, 1),
            datetime(2100, 1, 1, 12, 30, 15, 1234),
        ):
            one = self.target.with_delay(eta=eta).job_nothing()
            many = group(self.target.delayable(eta=eta).job_nothing(), self.target.delayable().job_nothing()).delay()
            in_a_row = [self.target.with_delay(eta=eta).job_nothing() for _index in range(2)]
            for job in (many[0], in_a_row[1]):
                self.assertEqual(self.row(job), self.row(one), eta)
                if one.scheduled_at:
                    self.assertAlmostEqual(job.scheduled_at, one.scheduled_at, delta=timedelta(seconds=5), msg=eta)
                else:
                    self.assertFalse(job.scheduled_at)

    def test_what_waits_is_not_due(self):
        jobs = chain(self.target.delayable().job_nothing(), self.target.delayable(eta=-60).job_nothing()).delay()
        self.assertEqual(jobs.mapped("is_due"), [True, False])


class TestStoreValues(JobCase):
    """Section 1.1: ``_job_store_values(job_vals)`` adds values to the jobs of a model."""

    def test_values_are_stored_with_the_job(self):
        target = self.target.with_context(test_job_tag="blue")
        self.assertEqual(target.with_delay().job_nothing().test_tag, "blue")
        jobs = group(target.delayable().job_nothing(), self.target.delayable().job_nothing()).delay()
        self.assertEqual(jobs.mapped("test_tag"), ["blue", "untagged"])
        self.assertEqual(target.delayable().job_nothing().split(1).delay().test_tag, "blue")
        job = (
            self.env["queue.job"]
            .with_context(test_job_tag="direct")
            .enqueue("test.job.target", "job_nothing", self.target.ids)
        )
        self.assertEqual(job.test_tag, "direct")

    def test_the_default_of_a_field_of_another_addon_is_stored(self):
        self.assertEqual(self.env["res.partner"].with_delay().anything().test_tag, "untagged")

    def test_options_can_be_changed(self):
        def values(records, job_vals):
            return {"priority": job_vals["priority"] + 1, "channel": "mail", "company_id": self.env.company}

        with patch.object(self.env.registry["test.job.target"], "_job_store_values", values):
            job = self.target.with_delay(priority=4).job_nothing()
        self.assertEqual((job.priority, job.channel, job.company_id), (5, "mail", self.env.company))

    def test_options_are_checked_as_those_of_the_call(self):
        for values in ({"channel": "c" * 201}, {"channel": ""}, {"timeout": -1}):
            with (
                self.subTest(values),
                patch.object(self.env.registry["test.job.target"], "_job_store_values", lambda *args, v=values: v),
                self.assertRaises(ValueError),
            ):
                self.target.with_delay().job_nothing()

    def test_it_is_told_what_is_going_to_be_stored(self):
        seen = []

        def values(records, job_vals):
            seen.append((records, job_vals))
            return {}

        with patch.object(self.env.registry["test.job.target"], "_job_store_values", values):
            self.target.with_delay(channel="mail").job_echo(7)
        records, job_vals = seen[0]
        self.assertEqual((records, job_vals["channel"]), (self.target, "mail"))
        self.assertEqual((job_vals["payload"]["method"], job_vals["payload"]["args"]), ("job_echo", [7]))

    def test_an_override_for_all_models_counts(self):
        base = self.env.registry["base"]
        with patch.object(base, "_job_store_values", lambda records, job_vals: {"test_tag": "all"}):
            self.assertEqual(self.env["res.partner"].with_delay().anything().test_tag, "all")

    def test_what_says_what_a_job_is_cant_be_changed(self):
        for name in ("state", "payload", "uuid", "model_name", "parent_id", "nonsense", "child_ids"):
            with (
                patch.object(self.env.registry["test.job.target"], "_job_store_values", lambda *args, n=name: {n: 1}),
                self.assertRaisesRegex(ValueError, name),
            ):
                self.target.with_delay().job_nothing()
