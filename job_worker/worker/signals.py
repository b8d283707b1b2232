"""What Odoo's processes tell each other about changed modules and cached settings, read along with a claim."""

from types import SimpleNamespace

from odoo.modules.registry import Registry

from .. import queries


class Signals:
    """Odoo's own signalling, with its query and the answer to that kept apart: it takes no round trip of its own.

    :param str db_name: database
    """

    def __init__(self, db_name):
        self._db_name = db_name
        self._followed = None

    @property
    def expression(self):
        """SQL expression that reads them, as a JSON array."""
        sent = []
        # of no registry in particular: the gate may be closed, and none is to be loaded
        Registry.get_sequences(None, SimpleNamespace(execute=sent.append, fetchone=lambda: (None,)))
        (query,) = sent
        return queries.columns_as_json(query.code)

    def follow(self, row):
        """Forget cached settings that others have changed.

        :param list row: the value of :attr:`expression`
        :return: whether modules were installed or upgraded, which is not followed here
        """
        if row == self._followed:
            return False
        registry = Registry(self._db_name)
        answered = SimpleNamespace(execute=lambda query: None, fetchone=lambda: row)
        if registry.registry_sequence != registry.get_sequences(answered)[0]:
            return True
        registry.check_signaling(answered)
        self._followed = row
        return False
