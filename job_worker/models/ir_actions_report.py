"""Reports in jobs show what their user may see, as they do in a request."""

import tempfile
from contextlib import contextmanager
from urllib.parse import urlparse

from odoo import api, models
from odoo.http import get_default_session, request, root
from odoo.service import security

_COOKIES = "job_worker_cookies"


class IrActionsReport(models.Model):
    _inherit = "ir.actions.report"

    @api.model
    def _run_wkhtmltopdf(self, *args, **kwargs):
        if request or not self.env.context.get("job_uuid"):
            return super()._run_wkhtmltopdf(*args, **kwargs)
        with self._cookies_of_user() as path:
            return super(IrActionsReport, self.with_context(**{_COOKIES: path}))._run_wkhtmltopdf(*args, **kwargs)

    @api.model
    def _build_wkhtmltopdf_args(self, *args, **kwargs):
        command = super()._build_wkhtmltopdf_args(*args, **kwargs)
        if path := self.env.context.get(_COOKIES):
            command += ["--cookie-jar", path]
        return command

    @contextmanager
    def _cookies_of_user(self):
        """A file with the cookie of a session of the user, which both end with the ``with`` block.

        Odoo hands such a one to the program that makes the PDF as well, but only in a request.
        """
        session = root.session_store.new()
        session.update(
            get_default_session(),
            db=self.env.cr.dbname,
            uid=self.env.uid,
            login=self.env.user.login,
            context=dict(self.env["res.users"].context_get()),
            _trace_disable=True,  # no device of the user's
        )
        session.session_token = security.compute_session_token(session, self.env)
        root.session_store.save(session)
        try:
            with tempfile.NamedTemporaryFile("w", prefix="report.cookies.", suffix=".txt") as file:
                domain = urlparse(self._get_report_url()).hostname
                file.write(f"session_id={session.sid}; HttpOnly; domain={domain}; path=/;")
                file.flush()
                yield file.name
        finally:
            root.session_store.delete(session)
