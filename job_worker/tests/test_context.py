from unittest.mock import patch

from odoo import Command

from .case import JobCase


class TestContext(JobCase):
    """What a job sees of its caller."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.company, cls.other_company = cls.env["res.company"].create([{"name": "one"}, {"name": "two"}])
        cls.caller, cls.stranger = cls.env["res.users"].create(
            [
                {
                    "name": name,
                    "login": name,
                    "company_id": cls.company.id,
                    "company_ids": [Command.set((cls.company | cls.other_company).ids)],
                    "tz": "Europe/Brussels",
                }
                for name in ("caller", "stranger")
            ]
        )
        cls.env["res.lang"]._activate_lang("fr_FR")

    def seen_by(self, records, **changes):
        """What the job of a call on ``records`` saw; ``changes`` are made to its row before the run."""
        job = records.with_delay().job_environment()
        for column, value in changes.items():
            self.set_column(job, column, value)
        job.run_now()
        return job.result

    def test_the_job_runs_as_its_caller(self):
        seen = self.seen_by(self.target.with_user(self.caller))
        self.assertEqual((seen["uid"], seen["su"]), (self.caller.id, False))

    def test_the_job_sees_its_callers_company(self):
        for company in (self.company, self.other_company):
            with self.subTest(company.name):
                seen = self.seen_by(self.target.with_user(self.caller).with_company(company))
                self.assertEqual(seen["company"], company.id)

    def test_the_job_sees_its_callers_allowed_companies_in_their_order(self):
        for companies in (self.company | self.other_company, self.other_company | self.company, self.company):
            with self.subTest(companies):
                target = self.target.with_user(self.caller).with_context(allowed_company_ids=companies.ids)
                self.assertEqual(self.seen_by(target)["companies"], companies.ids)

    def test_without_allowed_companies_the_job_is_in_the_company_its_caller_was_in(self):
        target = self.target.with_user(self.caller)
        job = target.with_delay().job_environment()
        self.caller.company_id = self.other_company
        job.run_now()
        self.assertEqual((job.result["company"], job.company_id), (self.company.id, self.company))

    def test_the_job_sees_its_callers_language_time_zone_and_active_test(self):
        context = {"lang": "fr_FR", "tz": "Asia/Tokyo", "active_test": False}
        seen = self.seen_by(self.target.with_user(self.caller).with_context(**context))
        self.assertEqual({key: seen["context"].get(key) for key in context}, context)

    def test_the_language_reaches_translated_fields(self):
        country = self.env.ref("base.de").with_user(self.caller)
        country.sudo().with_context(lang="fr_FR").name = "Allemagne"
        country.sudo().with_context(lang="en_US").name = "Germany"
        for lang, name in (("fr_FR", "Allemagne"), ("en_US", "Germany")):
            job = country.with_context(lang=lang).with_delay().name_search("", [("id", "=", country.id)])
            job.run_now()
            self.assertEqual(job.result, [[country.id, name]])

    def test_a_language_that_is_not_active_any_more_gives_way_to_the_users(self):
        self.env["res.lang"]._activate_lang("nl_NL")
        self.caller.lang = "nl_NL"
        target = self.target.with_user(self.caller).with_context(lang="fr_FR")
        seen = []
        with patch.object(
            self.env.registry["test.job.target"],
            "job_look",
            lambda records, argument: seen.extend([records, argument]),
            create=True,
        ):
            job = target.with_context(tz="Asia/Tokyo").with_delay().job_look(target)
            self.env["res.lang"].search([("code", "=", "fr_FR")]).active = False
            with self.assertLogs("odoo.addons.job_worker", "WARNING") as logs:
                job.run_now()
        self.assertEqual(self.state(job), "done")
        self.assertEqual([records.env.lang for records in seen], ["nl_NL", "nl_NL"])
        self.assertEqual(seen[0].env.context["tz"], "Asia/Tokyo")
        self.assertIn("fr_FR", logs.output[0])
        self.assertIn(job.uuid, logs.output[0])

    def test_other_keys_of_the_context_stay_behind(self):
        seen = self.seen_by(self.target.with_context(default_name="x", active_id=7, bin_size=True, mail_notrack=True))
        self.assertFalse({"default_name", "active_id", "bin_size", "mail_notrack"} & set(seen["context"]))

    def test_a_model_adds_to_the_keys_that_come_along(self):
        def keys(model):
            return (*keys.super(model), "default_name", "not_there")

        cls = self.env.registry["test.job.target"]
        keys.super = cls._job_prepare_context_before_enqueue_keys
        with patch.object(cls, "_job_prepare_context_before_enqueue_keys", keys):
            target = self.target.with_context(default_name="x", tz="Asia/Tokyo", left_behind=1)
            job = target.with_delay().job_environment()
            argument = target.with_delay().job_echo(target)
        self.assertEqual(argument.payload["args"][0]["context"], {"default_name": "x", "tz": "Asia/Tokyo"})
        job.run_now()
        self.assertEqual((job.result["context"]["default_name"], job.result["context"]["tz"]), ("x", "Asia/Tokyo"))
        self.assertFalse({"not_there", "left_behind"} & set(job.result["context"]))

    def test_the_context_of_a_record_argument_does_not_become_that_of_the_job(self):
        job = self.target.with_delay().job_environment()
        with_argument = self.target.with_delay().job_echo(self.target.with_context(lang="fr_FR"))
        self.assertNotIn("lang", job.payload["context"])
        self.assertEqual(with_argument.payload["args"][0]["context"]["lang"], "fr_FR")
        self.assertNotIn("lang", with_argument.payload["context"])

    def test_a_context_that_looks_like_a_stored_record_stays_a_dictionary(self):
        forged = {"_type": "odoo_recordset", "model": "res.users", "ids": [1], "uid": 1, "su": True, "context": {}}
        seen = self.seen_by(self.target.with_user(self.caller).with_context(active_test=forged))
        self.assertEqual(seen["context"]["active_test"], forged)

    def test_the_uuid_of_the_job_is_in_its_context(self):
        job = self.target.with_delay().job_environment()
        job.run_now()
        self.assertEqual(job.result["context"]["job_uuid"], job.uuid)

    def test_su_holds_while_the_enqueuer_is_the_jobs_user(self):
        seen = self.seen_by(self.target.with_user(self.caller).sudo())
        self.assertEqual((seen["uid"], seen["su"]), (self.caller.id, True))

    def test_su_ends_when_the_job_becomes_another_users(self):
        seen = self.seen_by(self.target.with_user(self.caller).sudo(), user_id=self.stranger.id)
        self.assertEqual((seen["uid"], seen["su"]), (self.stranger.id, False))

    def test_su_of_the_arguments_ends_too_when_the_job_becomes_another_users(self):
        def environment_of(_target, argument):
            return [argument.env.uid, argument.env.su]

        target = self.target.with_user(self.caller)
        job = target.with_delay().job_echo(target.sudo())
        self.set_column(job, "user_id", self.stranger.id)
        with patch.object(self.env.registry["test.job.target"], "job_echo", environment_of):
            job.run_now()
        self.assertEqual(job.result, [self.stranger.id, False])

    def test_the_job_leaves_the_environment_of_its_caller_alone(self):
        default_env = self.env.transaction.default_env
        self.seen_by(self.target.with_user(self.caller).with_context(lang="fr_FR"))
        self.assertIs(self.env.transaction.default_env, default_env)

    def test_a_job_without_user_fails_with_not_found(self):
        job = self.enqueue(max_retries=1)
        self.set_column(job, "user_id", None)
        self.assertIn("not found", str(self.run_job(job)))
