"""The working directory and the locale: they belong to the process, so all its jobs share them."""

import contextlib
import locale
import os
import threading

from . import events


class ProcessState:
    """Brings back what jobs changed, as soon as none of them runs; before that, it may be what another one relies on.

    Not the environment variables: a library that a job is the first to import may set some for good.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._jobs = 0
        self._first = None

    def __enter__(self):
        with self._lock:
            self._first = self._first or _read()
            self._jobs += 1

    def __exit__(self, kind, error, trace):
        with self._lock:
            self._jobs -= 1
            if not self._jobs and (now := _read()) != self._first:
                events.process_state_restored(now, self._first)
                _write(*self._first)


def _read():
    try:
        directory = os.getcwd()  # noqa: PTH109 it is asked after each job
    except OSError:  # it was removed
        directory = None
    return directory, locale.setlocale(locale.LC_ALL)


def _write(directory, name):
    with contextlib.suppress(OSError):
        os.chdir(directory or "/")
    locale.setlocale(locale.LC_ALL, name)
