"""JSON for the payload of jobs: what JSON lacks travels as ``{"_type": …}`` objects.

The payload is stored as PostgreSQL ``jsonb``, which knows less than Python's ``json``: no NUL character and no lone
surrogate in strings, no NaN, no infinity, and numbers without exponent or negative zero. Those are wrapped too, so that
a value comes back as the value that went in.
"""

import base64
import json
import logging
import math
import re
from datetime import date, datetime
from decimal import Decimal

from lxml import etree
from markupsafe import Markup
from odoo.exceptions import UserError
from odoo.models import BaseModel
from odoo.tools.misc import get_lang

_logger = logging.getLogger(__name__)

TYPE_KEY = "_type"
RECORDSET = "odoo_recordset"
MAX_INT_BITS = 10_000  # Python refuses to read and write longer ones as decimal digits


class ModelNotFoundError(LookupError):
    """The model of a job, or of one of its arguments, is not in this process's registry."""


def _plain_str(value):
    """A subclass of ``str`` as the string it holds: ``str()`` of an enumeration would be its name."""
    return str.__str__(value)


def _is_storable(text):
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return "\x00" not in text


def storable(text):
    """Text as PostgreSQL can store it: what it can't is replaced."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _pack_str(value):
    if _is_storable(value):
        return value
    return {TYPE_KEY: "str", "value": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}


def _pack_int(value):
    if value.bit_length() > MAX_INT_BITS:
        return {TYPE_KEY: "int", "value": hex(value)}
    return value


def _pack_float(value):
    text = repr(value)
    if math.isfinite(value) and "e" not in text and text != "-0.0":
        return value
    return {TYPE_KEY: "float", "value": text}


def _pack_dict(value, where):
    if TYPE_KEY not in value and all(type(key) is str and _is_storable(key) for key in value):
        return {key: _pack(item, f"{where}[{key!r}]") for key, item in value.items()}
    items = [[_pack(key, where), _pack(item, f"{where}[{key!r}]")] for key, item in value.items()]
    return {TYPE_KEY: "dict", "items": items}


def _pack_recordset(records, where):
    if not all(isinstance(record_id, int) for record_id in records._ids):
        raise TypeError(f"{where} holds a record of {records._name} that is not saved yet")
    keys = records._job_prepare_context_before_enqueue_keys()
    context = {key: records.env.context[key] for key in keys if key in records.env.context}
    return {
        TYPE_KEY: RECORDSET,
        "model": records._name,
        "ids": list(records._ids),
        "uid": records.env.uid,
        "su": records.env.su,
        "context": _pack(context, where),
    }


def _pack_items(values, where):
    return [_pack(item, f"{where}[{index}]") for index, item in enumerate(values)]


def _pack(value, where):
    """Rewrite ``value`` into what ``jsonb`` keeps; ``where`` names it in the error."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return _pack_int(value)
    if kind is str:
        return _pack_str(value)
    if kind is float:
        return _pack_float(value)
    if kind is list:
        return _pack_items(value, where)
    if kind is dict:
        return _pack_dict(value, where)
    if kind is tuple:
        return {TYPE_KEY: "tuple", "value": _pack_items(value, where)}
    if kind is set:
        return {TYPE_KEY: "set", "value": sorted(_pack_items(value, where), key=json.dumps)}
    if isinstance(value, BaseModel):
        return _pack_recordset(value, where)
    if isinstance(value, datetime):
        return {TYPE_KEY: "datetime", "value": value.isoformat()}
    if isinstance(value, date):
        return {TYPE_KEY: "date", "value": value.isoformat()}
    if isinstance(value, Decimal):
        return {TYPE_KEY: "decimal", "value": str(value)}
    if isinstance(value, bytes):
        return {TYPE_KEY: "bytes", "value": base64.b64encode(value).decode()}
    if isinstance(value, etree._Element) and isinstance(value.tag, str):  # neither comment nor instruction
        return {TYPE_KEY: "etree", "value": _pack_str(etree.tostring(value, encoding="unicode", with_tail=False))}
    if isinstance(value, Markup):
        return {TYPE_KEY: "markup", "value": _pack_str(_plain_str(value))}
    # frozendict, defaultdict, enumerations of strings and other plain kin of JSON's own types
    for base, plain, pack in ((int, int, _pack_int), (float, float, _pack_float), (str, _plain_str, _pack_str)):
        if isinstance(value, base):
            return pack(plain(value))
    if isinstance(value, dict):
        return _pack_dict(value, where)
    if isinstance(value, list):
        return _pack_items(value, where)
    raise TypeError(f"{where} can't be stored in a job: {kind.__name__} is not serialisable")


class JobEncoder(json.JSONEncoder):
    """Encoder of job payloads: ``json.dumps(value, cls=JobEncoder)``.

    :raise TypeError: for a value that does not survive the round trip; the message says where it sits
    """

    def encode(self, o):
        return super().encode(_pack(o, "value"))

    def iterencode(self, o, _one_shot=False):
        return super().iterencode(_pack(o, "value") if not _one_shot else o, _one_shot)


def in_active_language(env):
    """The environment as it is, or in its user's language if its own is not active any more, as in the web client."""
    try:
        env.lang  # noqa: B018 looked up once, then cached with the environment
    except UserError:
        plain = env(context={})
        lang = get_lang(plain, plain.user.lang).code
        _logger.warning(
            "language is not active, the user's is taken: language=%s instead=%s job=%s",
            env.context["lang"], lang, env.context.get("job_uuid"),
        )  # fmt: skip
        return env(context={**env.context, "lang": lang})
    return env


class _Unpacker:
    """Rebuilds what :func:`_pack` wrote."""

    def __init__(self, env, foreign_uid):
        self.env = env
        self.foreign_uid = foreign_uid

    def __call__(self, value):
        if type(value) is list:
            return [self(item) for item in value]
        if type(value) is not dict:
            return value
        if TYPE_KEY not in value:
            return {key: self(item) for key, item in value.items()}
        try:
            return self._BY_TYPE[value[TYPE_KEY]](self, value)
        except (KeyError, TypeError) as error:
            raise ValueError(f"damaged value in the payload of a job: {value!r:.200}") from error

    def _recordset(self, obj):
        if obj["model"] not in self.env:
            raise ModelNotFoundError(f"model {obj['model']!r} of an argument not found")
        uid, su = obj["uid"], obj["su"]
        if self.foreign_uid is not None:
            su = False
            uid = self.env.uid if uid == self.foreign_uid else uid
        context = {**self.env.context, **self(obj["context"])}
        env = in_active_language(self.env(user=uid, su=su, context=context))
        return env[obj["model"]].browse(obj["ids"])

    def _etree(self, obj):
        return etree.fromstring(self(obj["value"]), etree.XMLParser(resolve_entities=False, huge_tree=True))

    _BY_TYPE = {
        RECORDSET: _recordset,
        "etree": _etree,
        "datetime": lambda self, obj: datetime.fromisoformat(obj["value"]),
        "date": lambda self, obj: date.fromisoformat(obj["value"]),
        "decimal": lambda self, obj: Decimal(obj["value"]),
        "bytes": lambda self, obj: base64.b64decode(obj["value"], validate=True),
        "str": lambda self, obj: base64.b64decode(obj["value"], validate=True).decode("utf-8", "surrogatepass"),
        "int": lambda self, obj: int(obj["value"], 16),
        "float": lambda self, obj: float(obj["value"]),
        "tuple": lambda self, obj: tuple(self(obj["value"])),
        "set": lambda self, obj: set(self(obj["value"])),
        "dict": lambda self, obj: {self(key): self(item) for key, item in obj["items"]},
        "markup": lambda self, obj: Markup(self(obj["value"])),
    }


class JobDecoder(json.JSONDecoder):
    """Decoder of job payloads: ``json.loads(text, cls=JobDecoder, env=env)``.

    :param env: environment in which recordsets are rebuilt
    :raise ValueError: the text is not what :class:`JobEncoder` writes
    """

    def __init__(self, *args, env, **kwargs):
        self.env = env
        super().__init__(*args, **kwargs)

    def decode(self, s, *args, **kwargs):
        return _Unpacker(self.env, None)(super().decode(s, *args, **kwargs))


def dump_call(args, kwargs, what):
    """Pack positional and keyword arguments of a call for the payload.

    :param str what: names the call in errors, as ``res.partner.export``
    :return: ``(args, kwargs)``, ready for :func:`json.dumps`
    :raise TypeError: names the argument that can't be stored
    """
    packed_args = [_pack_argument(value, f"argument {index} of {what}()") for index, value in enumerate(args, 1)]
    packed_kwargs = {key: _pack_argument(value, f"argument {key!r} of {what}()") for key, value in kwargs.items()}
    if not all(map(_is_storable, packed_kwargs)):
        raise TypeError(f"{what}() can't be called with an argument of such a name: {list(packed_kwargs)!r:.200}")
    return packed_args, packed_kwargs


def _pack_argument(value, where):
    try:
        return _pack(value, where)
    except RecursionError:
        raise TypeError(f"{where} can't be stored in a job: it is nested too deeply, or contains itself") from None


def load_call(args, kwargs, env, foreign_uid=None):
    """The inverse of :func:`dump_call`: arguments as the caller passed them.

    :param env: environment in which recordsets are rebuilt
    :param foreign_uid: record arguments of this user lose ``su`` and become the environment's user's: given when a job
        was handed to another user than the one who enqueued it
    :raise ValueError: the payload is damaged
    """
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ValueError(f"damaged arguments in the payload of a job: {args!r:.100}, {kwargs!r:.100}")
    if not args and not kwargs:
        return args, kwargs
    unpack = _Unpacker(env, foreign_uid)
    return unpack(args), {key: unpack(value) for key, value in kwargs.items()}


MAX_RESULT_BYTES = 64 * 1024
SHOWN_CHARACTERS = 1000


class _TooLongError(Exception):
    """Told of bytes before they become several times as many characters."""


def dump_result(value):
    """What a method returned, as the JSON text of the job's ``result``.

    What JSON can't hold becomes its ``repr``; over 64 KiB only the beginning of the ``repr`` is kept, in a marker with
    the size: that of the JSON, or of bytes alone where there are that many of them.

    :rtype: str or None
    """
    if value is None:
        return None
    try:
        try:
            text = _strict_json(value)
        except (TypeError, ValueError, RecursionError):
            text = _strict_json(_safe_repr(value))
        size = len(text.encode())
    except _TooLongError as error:
        (size,) = error.args
    if size > MAX_RESULT_BYTES:
        beginning = value[:SHOWN_CHARACTERS] if isinstance(value, str | bytes | bytearray) else value
        shown = _safe_repr(beginning)[:SHOWN_CHARACTERS]
        text = _strict_json({"__truncated__": True, "__repr__": shown, "__size_bytes__": size})
    return text


def _strict_json(value):
    """JSON as ``jsonb`` takes it.

    :raise ValueError: a NUL character, a lone surrogate, a number that is none
    """
    text = json.dumps(value, default=_short_repr, allow_nan=False, ensure_ascii=False)
    text.encode()  # a UnicodeEncodeError for lone surrogates
    if r"\u0000" in text and _NUL.search(text):
        raise ValueError("a NUL character in a string")
    return text


_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def _short_repr(value):
    if isinstance(value, bytes | bytearray) and len(value) > MAX_RESULT_BYTES:
        raise _TooLongError(len(value))
    return _safe_repr(value)


def _safe_repr(value):
    try:
        return storable(repr(value))
    except Exception as error:  # a broken __repr__ must not fail a job that succeeded
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
