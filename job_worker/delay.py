"""Capture calls, connect them into graphs, delay them.

    chain(
        group(orders.delayable().export(), invoices.delayable().export()),
        report.delayable(channel="mail").send(),
    ).delay()

A graph is a set of :class:`Delayable` nodes and the edges between them. Groups and chains are ways to draw edges: a
part of a graph begins at its *heads* and ends at its *tails*.
"""

import logging
from datetime import datetime, timedelta, timezone
from functools import partial

from .job import DEFAULT_CHANNEL, DEFAULT_MAX_RETRIES, DEFAULT_PRIORITY, DEFAULT_TIMEOUT

_logger = logging.getLogger(__name__)

DEFAULTS = {
    "channel": DEFAULT_CHANNEL,
    "priority": DEFAULT_PRIORITY,
    "eta": None,
    "scheduled_at": None,
    "max_retries": DEFAULT_MAX_RETRIES,
    "timeout": DEFAULT_TIMEOUT,
    "identity_key": None,
    "description": None,
}
NOW = (None, None)
MAX_NAME_CHARACTERS = 200
"""Names are in indexes, whose entries can't be longer than a third of a page."""


class _NotAMethodError(AttributeError, ValueError):
    """A name that no job can call; an ``AttributeError`` so that ``hasattr`` and ``copy`` keep working."""


def _check_int(name, value, minimum=None):
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} can't be below {minimum}: {value}")
    if abs(value) >= 2**31:
        raise ValueError(f"{name} is out of range: {value}")


def check_text(name, value):
    """Refuse what a text column can't hold.

    :return: ``value``
    :raise TypeError: not a string
    :raise ValueError: it contains a NUL character or a lone surrogate
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r}")
    if "\x00" in value:
        raise ValueError(f"{name} can't contain a NUL character: {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} can't contain half of a character: {value!r}") from None
    return value


def check_method_name(name):
    """Refuse what can't be the method of a job.

    :raise ValueError: an empty name, a dunder, not an identifier
    """
    if not isinstance(name, str) or not name.isidentifier() or (name.startswith("__") and name.endswith("__")):
        raise _NotAMethodError(f"{name!r} can't be the method of a job")


def as_schedule(value):
    """Bring an ``eta`` into one of two forms.

    :param value: ``None``, datetime (naive means UTC), timedelta, or seconds from now as int or float
    :return: ``(moment, None)`` with a naive UTC datetime, ``(None, seconds)``, or :data:`NOW`
    :raise TypeError: another type
    :raise ValueError: beyond what a date can hold
    """
    if value is None or value is False:
        return NOW
    if isinstance(value, datetime):
        return (value.astimezone(timezone.utc).replace(tzinfo=None) if value.tzinfo else value), None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) < 100 * 365 * 86400:
            raise ValueError(f"eta is more than a hundred years away: {value} seconds")
        return None, float(value)
    raise TypeError(f"eta must be a datetime, a timedelta or a number of seconds, not {value!r}")


def check_name(name, value):
    """Refuse what can't be the name of a channel or of a graph.

    :raise TypeError: not a string
    :raise ValueError: empty, over 200 characters, or nothing that a text column can hold
    """
    if not check_text(name, value).strip():
        raise ValueError(f"{name} can't be empty")
    if len(value) > MAX_NAME_CHARACTERS:
        raise ValueError(f"{name} can't be longer than {MAX_NAME_CHARACTERS} characters: {value[:50]!r}…")


def _check_identity_key(name, value):
    if not callable(value):
        check_text(name, value)


_CHECKS = {
    "channel": check_name,
    "priority": _check_int,
    "max_retries": partial(_check_int, minimum=0),
    "timeout": partial(_check_int, minimum=0),
    "identity_key": _check_identity_key,
    "description": check_text,
}


def check_options(options):
    """Check job options, fill in the defaults.

    :param dict options: see :meth:`~odoo.addons.job_worker.models.base.Base.with_delay`; ``None`` means the default
    :return: every option, ``eta`` and ``scheduled_at`` merged into ``schedule`` (see :func:`as_schedule`)
    :rtype: dict
    :raise ValueError: an unknown option or a value out of range
    :raise TypeError: a value of a wrong type
    """
    checked = DEFAULTS.copy()
    for name, value in options.items():
        if name not in DEFAULTS:
            raise ValueError(f"No property {name!r} on a job; there are {', '.join(DEFAULTS)}")
        if value is not None:
            checked[name] = value
            if check := _CHECKS.get(name):
                check(name, value)
    eta, scheduled_at = as_schedule(checked.pop("eta")), as_schedule(checked.pop("scheduled_at"))
    if eta != scheduled_at and NOW not in (eta, scheduled_at):
        raise ValueError(f"eta and scheduled_at differ: {eta}, {scheduled_at}")
    checked["schedule"] = scheduled_at if eta == NOW else eta
    return checked


class _Part:
    """A part of a graph: something with heads and tails that others can wait for."""

    def _heads(self):
        """Nodes that begin this part."""
        raise NotImplementedError

    def _tails(self):
        """Nodes that end this part."""
        raise NotImplementedError

    def _nodes(self):
        """All nodes of this part."""
        raise NotImplementedError

    def on_done(self, *parts):
        """Run ``parts`` after this one is done, in parallel.

        :param parts: delayables, groups and chains
        :return: this part
        """
        self._connect(parts, on_error=False)
        return self

    def on_error(self, *parts):
        """Run ``parts`` if this one fails for good; they are cancelled if it does not.

        :param parts: delayables, groups and chains
        :return: this part
        """
        self._connect(parts, on_error=True)
        return self

    def _connect(self, parts, on_error):
        for part in parts:
            _check_part(part)
            heads = part._heads()
            for tail in self._tails():
                for head in heads:
                    tail._add_child(head, on_error)

    def delay(self):
        """Store the whole graph this part belongs to, in the current transaction.

        :return: the jobs, parents before their children; for a lone delayable, its job
        :rtype: recordset of ``queue.job``
        :raise ValueError: the graph has a cycle
        """
        nodes = _connected(self._nodes())
        if not nodes:
            return self._no_jobs()
        _settle(nodes)
        return nodes[0].recordset.env["queue.job"]._store_graph(nodes)

    def _no_jobs(self):
        return ()


def _check_part(part):
    if not isinstance(part, _Part):
        raise TypeError(f"expected a delayable, a group or a chain, not {part!r}; use .delayable() to get one")


def _settle(nodes):
    """What becomes of ``nodes`` is known: they were not forgotten."""
    for node in nodes:
        node._settled = True


def _connected(nodes):
    """All nodes that edges connect to ``nodes``, those first, in the order they were given."""
    found = dict.fromkeys(nodes)
    todo = list(found)
    while todo:
        node = todo.pop()
        for other in (*node._parents, *node._children):
            if other not in found:
                found[other] = None
                todo.append(other)
    return list(found)


class Delayable(_Part):
    """A call that was captured and not yet stored; one node of a graph.

    Any method of the model can be called on it once, which captures the call:
    ``partners.delayable(priority=5).export("csv")``.

    :param recordset: records the method is to be called on
    :param options: see :meth:`~odoo.addons.job_worker.models.base.Base.with_delay`
    """

    # those of DEFAULTS, until they are set
    priority = DEFAULT_PRIORITY
    channel = DEFAULT_CHANNEL
    max_retries = DEFAULT_MAX_RETRIES
    timeout = DEFAULT_TIMEOUT
    eta = scheduled_at = identity_key = description = None

    def __init__(self, recordset, **options):
        self.recordset = recordset
        self.model_name = recordset._name
        self.method_name = None
        self.args = ()
        self.kwargs = {}
        self._parents = {}
        self._children = {}
        self._settled = False
        if options:
            self.set(options)

    def set(self, *dicts, **options):
        """Change options, given as one dictionary or as keywords.

        :return: this delayable
        :raise ValueError: "No property …" for an unknown option
        """
        options = dict(*dicts, **options)
        check_options({**self._options(), **options})
        for name, value in options.items():
            setattr(self, name, DEFAULTS[name] if value is None else value)
        return self

    def _options(self):
        """Those that were set."""
        return {name: value for name, value in vars(self).items() if name in DEFAULTS}

    def __getattr__(self, name):
        check_method_name(name)
        if self.__dict__.get("method_name"):
            raise ValueError(f"{self} is captured already, it can't call {name}() too")
        return partial(self._capture, name)

    def _capture(self, name, /, *args, **kwargs):
        """Capture the call of a method, also of one that is called like something of ours, as ``set`` or ``split``."""
        self.method_name, self.args, self.kwargs = name, args, kwargs
        return self

    def __repr__(self):
        return f"Delayable({self.recordset}.{self.method_name or '?'}())"

    def __del__(self):
        if self.__dict__.get("method_name") and not self._settled:
            _logger.warning("Delayable of %s.%s() was never delayed", self.model_name, self.method_name)

    def _heads(self):
        return [self]

    _tails = _nodes = _heads

    def _add_child(self, child, on_error):
        if next(iter(child._parents.values()), on_error) != on_error:
            raise ValueError(f"{child} can't wait for both success and failure")
        self._children[child] = on_error
        child._parents[self] = on_error

    @property
    def run_on_failure(self):
        """Whether this node runs when a parent fails, instead of when all are done."""
        return any(self._parents.values())

    def split(self, size, chain=False):
        """Cut the recordset into chunks that run as jobs of their own, with the same options.

        A callable ``identity_key`` is evaluated for each chunk.

        :param int size: records a chunk, at least 1
        :param bool chain: run the chunks one after the other instead of in parallel
        :rtype: DelayableGroup or DelayableChain
        :raise ValueError: ``size`` below 1
        """
        _check_int("size", size, 1)
        records = self.recordset
        chunks = []
        for start in range(0, len(records), size):
            chunk = Delayable(records[start : start + size], **self._options())
            chunks.append(chunk._capture(self.method_name, *self.args, **self.kwargs))
        self._settled = True
        split = (DelayableChain if chain else DelayableGroup)(*chunks)
        split._env = records.env
        # what was already connected to this delayable follows, or precedes, all the chunks
        for child, on_error in self._children.items():
            del child._parents[self]
            split._connect([child], on_error)
        for parent, on_error in self._parents.items():
            del parent._children[self]
            parent._connect([split], on_error)
        self._children, self._parents = {}, {}
        return split


class _Composite(_Part):
    """Several parts that act as one."""

    _env = None

    def __init__(self, *parts):
        for part in parts:
            _check_part(part)
        self._parts = parts
        # What follows while there is nothing to wait for: it follows whatever comes before.
        self._followers = []

    def __repr__(self):
        return f"{type(self).__name__}{self._parts}"

    def _connect(self, parts, on_error):
        if self._tails():
            super()._connect(parts, on_error)
            return
        for part in parts:
            _check_part(part)
            if on_error:  # what is empty does not fail
                _settle(_connected(part._nodes()))
            else:
                self._followers.append(part)

    def _nodes(self):
        return [node for part in (*self._parts, *self._followers) for node in part._nodes()]

    def _no_jobs(self):
        return self._env["queue.job"] if self._env else ()


class DelayableGroup(_Composite):
    """Parts that run in parallel; what follows waits for all of them."""

    def _heads(self):
        return [node for part in (*self._parts, *self._followers) for node in part._heads()]

    def _tails(self):
        return [node for part in self._parts for node in part._tails()]


class DelayableChain(_Composite):
    """Parts that run one after the other."""

    def __init__(self, *parts):
        super().__init__(*parts)
        before = None
        for part in parts:
            if before:
                before.on_done(part)
            if part._tails():  # an empty group takes no time
                before = part

    def _heads(self):
        heads = []
        for part in (*self._parts, *self._followers):
            heads += part._heads()
            if part._tails():
                break
        return heads

    def _tails(self):
        return next((tails for part in reversed(self._parts) if (tails := part._tails())), [])


class DelayableRecordset:
    """What ``with_delay()`` returns: calling any method of the model on it stores a job and returns it.

    :param recordset: records the method is to be called on
    :param options: see :meth:`~odoo.addons.job_worker.models.base.Base.with_delay`
    """

    __slots__ = ("_options", "_recordset")

    def __init__(self, recordset, **options):
        if options:
            check_options(options)
        self._recordset = recordset
        self._options = options

    def __getattr__(self, name):
        check_method_name(name)

        def enqueue(*args, **kwargs):
            return Delayable(self._recordset, **self._options)._capture(name, *args, **kwargs).delay()

        return enqueue

    def __repr__(self):
        return f"DelayableRecordset({self._recordset})"


def group(*parts):
    """Run delayables, groups and chains in parallel. See :class:`DelayableGroup`."""
    return DelayableGroup(*parts)


def chain(*parts):
    """Run delayables, groups and chains one after the other. See :class:`DelayableChain`."""
    return DelayableChain(*parts)
