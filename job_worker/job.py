"""Names and defaults of jobs, for whoever enqueues or inspects them."""

import hashlib
import json

DEFAULT_PRIORITY = 10
DEFAULT_MAX_RETRIES = 5
DEFAULT_TIMEOUT = 0
DEFAULT_CHANNEL = "root"
MAX_KEY_CHARACTERS = 200
OVERDUE_SECONDS = 300
"""A pending job that has been due for longer is overdue."""

WAITING = "waiting"
PENDING = "pending"
STARTED = "started"
DONE = "done"
FAILED = "failed"
CANCELLED = "cancelled"

STATES = [
    (WAITING, "Waiting"),
    (PENDING, "Pending"),
    (STARTED, "Started"),
    (DONE, "Done"),
    (FAILED, "Failed"),
    (CANCELLED, "Cancelled"),
]


def storable_key(key):
    """An identity key as it is stored: a long one, which no index entry could hold, as its SHA-256.

    :param str key: or ``None``
    """
    return hashlib.sha256(key.encode()).hexdigest() if key and len(key) > MAX_KEY_CHARACTERS else key or None


def identity_exact(delayable):
    """Identity key of a call: the same model, method, records and arguments give the same key.

    The order of the records does not matter. Pass it as ``identity_key=identity_exact``.

    :param delayable: a :class:`~odoo.addons.job_worker.delay.Delayable`
    :return: SHA-1 as 40 hexadecimal digits
    :rtype: str
    """
    from .models.job_serialization import JobEncoder

    call = [
        delayable.model_name,
        delayable.method_name,
        sorted(delayable.recordset.ids),
        delayable.args,
        delayable.kwargs,
    ]
    return hashlib.sha1(json.dumps(call, cls=JobEncoder, sort_keys=True).encode()).hexdigest()
