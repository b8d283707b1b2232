"""Agents: processes that store jobs when they are told to, one JSON line in, one out.

This module is imported on both sides, so it needs nothing but the standard library.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

READY = "ready"


def serve(functions: dict[str, Callable]) -> None:
    """Answer `[name, arguments]` lines with what the function of that name returns, until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    print(json.dumps(READY), file=answers, flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(functions[name](*arguments)), file=answers, flush=True)


class Driver:
    """The other side of `serve`: `driver("name", …)` calls a function there."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        if self._answer() != READY:
            raise RuntimeError(f"no driver: {process.args}")

    def __call__(self, name: str, *arguments):
        print(json.dumps([name, arguments]), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the driver ended: {self._process.args}, its messages are in the log")
        return json.loads(line)


@contextmanager
def driver(command: list, environment: dict[str, str], log) -> Iterator[Driver]:
    """A driver for as long as the block runs.

    `log` is the file for what it says besides its answers.
    """
    with subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        encoding="utf-8",
    ) as process:
        try:
            yield Driver(process)
        finally:
            process.stdin.close()
            process.wait(30)
