import subprocess
from http.cookies import SimpleCookie
from pathlib import Path
from unittest.mock import patch

from odoo.http import root
from odoo.tests import HOST, HttpCase, new_test_user

from .case import JobCase
from odoo.addons.base.models import ir_actions_report


class TestReports(JobCase, HttpCase):
    """A report fetches its images and styles from Odoo, over HTTP."""

    def setUp(self):
        super().setUp()
        self.user = new_test_user(self.env, "reporter", groups="base.group_user")
        self.picture = self.env["ir.attachment"].with_user(self.user).create({"name": "a picture", "raw": b"a picture"})

    def print_report(self, user, enqueue):
        """Run the call of a report, in a job or not.

        :return: ``(what the program that makes the PDF gets for the user's picture, the path of its cookies)``
        """
        got = []

        def make_pdf(args):
            path = args[args.index("--cookie-jar") + 1] if "--cookie-jar" in args else None
            if path:
                cookie = SimpleCookie(Path(path).read_text())["session_id"]
                self.opener.cookies.set("session_id", cookie.value, domain=HOST, path="/")
            response = self.url_open(f"/web/content/{self.picture.id}")
            got.append((response.content if response.ok else None, path))
            return subprocess.CompletedProcess(args, 0, "", "")

        report = self.env["ir.actions.report"].with_user(user)
        with patch.object(ir_actions_report, "_run_wkhtmltopdf", make_pdf):
            if enqueue:
                job = report.with_delay()._run_wkhtmltopdf(["<html></html>"])
                job.run_now()
                self.assertEqual(self.state(job), "done")
            else:
                report._run_wkhtmltopdf(["<html></html>"])
        return got[0]

    def test_a_report_in_a_job_has_the_pictures_that_the_jobs_user_may_see(self):
        picture, path = self.print_report(self.user, enqueue=True)
        self.assertEqual(picture, b"a picture")
        self.assertFalse(Path(path).exists())
        self.assertFalse(root.session_store.get(self.opener.cookies["session_id"]).uid, "the session outlives it")

    def test_a_report_in_a_job_has_no_pictures_that_the_jobs_user_may_not_see(self):
        other = new_test_user(self.env, "other", groups="base.group_user")
        self.assertIsNone(self.print_report(other, enqueue=True)[0])

    def test_a_report_outside_of_jobs_is_left_to_odoo(self):
        self.assertEqual(self.print_report(self.user, enqueue=False), (None, None))
