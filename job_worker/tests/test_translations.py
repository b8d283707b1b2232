import re

import polib
from odoo.tests import tagged
from odoo.tools.misc import file_path
from odoo.tools.translate import TranslationModuleReader

from .case import JobCase


@tagged("post_install", "-at_install", "job_worker")
class TestTranslations(JobCase):
    def terms(self, name):
        """``{source: translation}`` of a file of this addon."""
        return {entry.msgid: entry.msgstr for entry in polib.pofile(file_path(f"job_worker/i18n/{name}"))}

    def test_the_template_has_every_term(self):
        reader = TranslationModuleReader(self.cr, ["job_worker"])
        terms = {source for _module, _type, _name, _id, source, *_rest in reader}
        self.assertTrue(terms)
        self.assertFalse(terms - set(self.terms("job_worker.pot")), "run: odoo-bin i18n export job_worker")

    def test_the_german_translation_is_complete(self):
        german = self.terms("de.po")
        translated = {source for source, value in german.items() if value}
        self.assertFalse(set(self.terms("job_worker.pot")) - translated)
        placeholder = re.compile(r"%(?:\(\w+\))?s")
        for source, value in german.items():
            self.assertCountEqual(placeholder.findall(source), placeholder.findall(value), source)

    def test_where_a_job_stands_is_told_in_the_language_of_who_asks(self):
        self.env["res.lang"]._activate_lang("de_DE")
        job = self.in_state("started")
        self.assertTrue(job.with_context(lang="de_DE").standing.startswith("Versuch 1 von 6, läuft seit"))
        self.assertTrue(job.with_context(lang="en_US").standing.startswith("Attempt 1 of 6, running for"))
