"""What Odoo's processes tell each other about changed modules and cached settings, read along with a claim."""

from types import SimpleNamespace

from odoo.modules.registry import Registry


class Signals:
    """Odoo's own signalling, with the statement and its answer kept apart, so that it needs no round trip of its own.

    :param str db_name: database
    :param bool prepared: the connection keeps prepared statements; call :meth:`prepare` whenever it was opened
    """

    def __init__(self, db_name, prepared):
        self._db_name = db_name
        self._prepared = prepared

    def prepare(self, cr):
        """Have the statement planned once for this session."""
        if self._prepared:
            cr.execute(f"PREPARE job_worker_signals AS {self._statement()}")

    @property
    def sql(self):
        """The statement that reads them."""
        return "EXECUTE job_worker_signals" if self._prepared else self._statement()

    def _statement(self):
        sent = []
        Registry(self._db_name).get_sequences(SimpleNamespace(execute=sent.append, fetchone=lambda: (None,)))
        (query,) = sent
        return query.code

    def follow(self, row):
        """Forget cached settings that others have changed.

        :param row: what :attr:`sql` returned
        :return: whether modules were installed or upgraded, which is not followed here
        """
        registry = Registry(self._db_name)
        answered = SimpleNamespace(execute=lambda query: None, fetchone=lambda: row)
        if registry.registry_sequence != registry.get_sequences(answered)[0]:
            return True
        registry.check_signaling(answered)
        return False
