import csv
import io
from collections import Counter
from email.message import EmailMessage

import requests
from odoo import models
from odoo.tools import split_every

from odoo.addons.job_worker.delay import chain, group
from odoo.addons.job_worker.exception import RetryableJobError

EXPORT_SIZE = 50
MAIL_SIZE = 20


class ResPartner(models.Model):
    """The jobs of `make demo`: they only use what Odoo's base module has."""

    _inherit = "res.partner"

    def _demo_delay(self, geocoder_url):
        """Export and geocode these partners, prepare mails to those that have coordinates, report at the end.

        :param str geocoder_url: service that finds coordinates
        :return: the jobs
        """
        export = self.delayable(channel="demo.export", priority=5, description="Export partners")
        exports = export._demo_export().split(EXPORT_SIZE)
        mailings = [part._demo_mailing(geocoder_url) for part in split_every(MAIL_SIZE, self.ids, self.browse)]
        report = self.delayable(channel="demo.report", description="Report on the whole run")._demo_report()
        return chain(group(exports, *mailings), report).delay()

    def _demo_mailing(self, geocoder_url):
        """Geocode these partners one by one, in parallel, and then prepare the mails to them."""
        geocode = self.delayable(channel="demo.geocode", description="Geocode a partner")._demo_geocode(geocoder_url)
        mails = self.delayable(channel="demo.mail", description="Prepare mails")._demo_prepare_mails()
        return chain(geocode.split(1), mails)

    def _demo_delay_lost(self, geocoder_url):
        """Geocode a partner whose address is wrong, and prepare a mail to ask for the right one when that has failed.

        :param str geocoder_url: service that finds coordinates
        :return: the jobs
        """
        options = {"channel": "demo.geocode", "priority": 5, "max_retries": 1, "description": f"Geocode {self.name}"}
        ask = self.delayable(channel="demo.mail", description=f"Ask {self.name} for the address")
        return self.delayable(**options)._demo_geocode(geocoder_url).on_error(ask._demo_ask_for_address()).delay()

    def _demo_export(self):
        """Write these partners to a CSV file, kept as an attachment."""
        columns = ["id", "name", "email", "street", "zip", "city"]
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([partner[column] for column in columns] for partner in self)
        return self._demo_attach(f"partners-{self[:1].id}-{self[-1:].id}.csv", file.getvalue().encode(), "text/csv").id

    def _demo_geocode(self, url):
        """Ask the service for the coordinates of this partner's address.

        :raise RetryableJobError: it refuses, or can't answer now
        :raise ValueError: it does not know the address
        """
        response = requests.get(url, params={"address": self._demo_address()}, timeout=10)
        if response.status_code == 429:
            # To be told to wait is no failure, so it does not use up a try.
            seconds = int(response.headers["Retry-After"])
            raise RetryableJobError("Too many requests", seconds=seconds, ignore_retry=True)
        if response.status_code == 503:
            raise RetryableJobError("The geocoder is out of order", seconds=1)
        if response.status_code == 404:
            raise ValueError(f"The geocoder does not know the address {self._demo_address()!r}")
        response.raise_for_status()
        found = response.json()
        self.write({"partner_latitude": found["latitude"], "partner_longitude": found["longitude"]})
        return found

    def _demo_prepare_mails(self):
        """Write each of these partners a mail, kept as an attachment of the partner; nothing is sent."""
        for partner in self:
            partner._demo_attach_mail(
                "How to find you",
                f"Dear {partner.name},\n\nwe have you at {partner.partner_latitude}, {partner.partner_longitude}.\n",
            )

    def _demo_ask_for_address(self):
        self._demo_attach_mail(
            "Where are you?", f"Dear {self.name},\n\nnobody knows {self._demo_address()!r}. Where is that?\n"
        )

    def _demo_report(self):
        """Sum up what the jobs before this one have done; the text is kept as an attachment, and it is the result."""
        located = self.filtered(lambda partner: partner.partner_latitude or partner.partner_longitude)
        attachments = self.env["ir.attachment"]
        exports = attachments.search_count([("res_model", "=", "res.partner"), ("mimetype", "=", "text/csv")])
        mails = attachments.search_count([("res_model", "=", "res.partner"), ("res_id", "in", self.ids)])
        lines = [
            f"partners          {len(self):5}",
            f"with coordinates  {len(located):5}",
            f"exported files    {exports:5}",
            f"prepared mails    {mails:5}",
            "",
            *(f"{country:16}  {count:5}" for country, count in sorted(Counter(self.mapped(_country_name)).items())),
        ]
        report = "\n".join(lines)
        self._demo_attach("report.txt", report.encode(), "text/plain")
        return report

    def _demo_address(self):
        return ", ".join(filter(None, [self.street, self.zip, self.city, self.country_id.code]))

    def _demo_attach_mail(self, subject, body):
        mail = EmailMessage()
        mail["From"] = self.env.company.email or "office@example.com"
        mail["To"] = self.email_formatted
        mail["Subject"] = subject
        mail.set_content(body)
        self._demo_attach(f"{subject}.eml", mail.as_bytes(), "message/rfc822", res_id=self.id)

    def _demo_attach(self, name, content, mimetype, **values):
        return self.env["ir.attachment"].create(
            {"name": name, "raw": content, "mimetype": mimetype, "res_model": "res.partner", **values}
        )


def _country_name(partner):
    return partner.country_id.name
