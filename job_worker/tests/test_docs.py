import re
import unittest
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from odoo import models

from .case import JobCase

HOME = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class TestDocs(JobCase):
    """Every ``python`` block of ``README.md`` and ``docs/*.md`` beside the addon's folder is executed.

    The blocks of a page run in order and share their names, so that a later one can use what an earlier one made; all
    is rolled back after the page. Given are ``env``, ``partners`` (three ``res.partner``) and ``self`` (the first).
    Blocks check themselves with ``assert``.

    A class on ``models.Model`` with ``_inherit`` and methods is a snippet of an addon: its methods are put onto that
    model for the rest of the page. A test class is run: each ``test_…`` method, with the ``env`` of the page.

    Where the addon is installed without its documentation there is nothing to run.
    """

    def test_every_python_block_runs(self):
        # what lies beside an addon that was installed alone is somebody else's
        pages = [*HOME.glob("README.md"), *HOME.glob("docs/*.md")] if (HOME / "docs" / "enqueue.md").exists() else []
        for page in sorted(pages):
            with self.subTest(page.name), ExitStack() as cleanup:
                cleanup.callback(self.env.invalidate_all)
                savepoint = self.cr.savepoint()
                cleanup.callback(savepoint.close, rollback=True)
                self.run_page(page, cleanup)

    def run_page(self, page, cleanup):
        text = page.read_text()
        partners = self.env["res.partner"].create([{"name": name} for name in ("Azure", "Brass", "Coral")])
        names = {"__name__": "odoo.addons.docs", "env": self.env, "partners": partners, "self": partners[0]}
        cleanup.enter_context(patch.object(models, "Model", self.model_base(cleanup)))
        for block in BLOCK.finditer(text):
            line = text[: block.start(1)].count("\n")
            known = set(names)
            # so that a traceback tells page and line
            exec(compile("\n" * line + block[1], str(page), "exec"), names)
            for name in set(names) - known:
                if isinstance(names[name], type) and issubclass(names[name], unittest.TestCase):
                    self.run_tests(names[name])
            self.env.flush_all()

    def model_base(self, cleanup):
        """A base class that puts the methods of its subclasses onto the model they inherit."""
        registry = self.env.registry

        class Model:
            def __init_subclass__(cls):
                for name, method in vars(cls).items():
                    if callable(method) and not name.startswith("__"):
                        cleanup.enter_context(patch.object(registry[cls._inherit], name, method, create=True))

        return Model

    def run_tests(self, test_class):
        for name in unittest.TestLoader().getTestCaseNames(test_class):
            case = test_class(name)
            case.env, case.cr = self.env, self.cr
            with self.cr.savepoint():
                getattr(case, name)()
