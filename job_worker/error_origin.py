"""Where an error comes from: what tells one kind of failure from another, whatever its message."""

import contextlib
import re
import traceback

FRAMEWORK = {"base", "bus", "job_worker", "web"}
MAX_CHARACTERS = 200
_LAST_LINE = re.compile(r"^([A-Za-z_][\w.]*)(?::|$)")


def error_origin(error):
    """Tell the class of an error and the place that raised it.

    The place is the last frame in an addon; for an error that passed through none, the last frame of all.

    :param error: an exception, or the text of one
    :return: ``(class, place)``, like ``("ValueError", "sale/models/sale_order.py:12 in action_confirm")``; ``None`` for
        what is not known
    """
    if isinstance(error, BaseException):
        return class_name(type(error))[:MAX_CHARACTERS], _place(error)
    match = _LAST_LINE.match(error.rstrip().rpartition("\n")[2])
    return (match[1][:MAX_CHARACTERS] if match else None), None


def traceback_text(error):
    """The traceback of an exception, ``None`` if it can't be told: its notes and much else may be code of the job's."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:
        return None


def class_name(cls):
    """The name of a class, with that of its module."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _place(error):
    with contextlib.suppress(Exception):  # a property that fails
        while error.__traceback__ is None and error.__cause__ is not None:
            error = error.__cause__
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__") or ""
        in_addon = module.startswith("odoo.addons.") and module.split(".")[2] not in FRAMEWORK
        if in_addon or place is None or not place[0]:
            path = module.removeprefix("odoo.addons.").replace(".", "/") + ".py" if module else frame.f_code.co_filename
            place = in_addon, f"{path}:{line} in {frame.f_code.co_name}"
    return place and place[1][-MAX_CHARACTERS:]
