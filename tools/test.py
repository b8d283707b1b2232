"""`make test`: the addons' own tests in a fresh database, then the system tests in `tests/`.

With arguments only what they name is run: Odoo test tags where the first one starts with a slash
(`/job_worker:TestFoo`), else pytest's (`tests/test_x.py -k name`). The last line printed is `N passed, N failed`, over
all tests that ran.
"""

import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from tools import databases, setup
from tools.console import Problem, say, stream
from tools.paths import ADDONS, DEV, LOG, ODOO_BIN, PYTHON, ROOT

# A run that hangs must end before whatever started it gives up.
TIME_LIMIT = ("timeout", "--foreground", "--kill-after=30s", "60m")

LOG_LINE = re.compile(r"\S+ \S+ \d+ (?P<level>[A-Z]+) \S+ (?P<logger>[\w.]+): (?P<message>.*)")
STARTED = re.compile(r"Starting (\S+) \.\.\.")
SKIPPED = re.compile(r"skipped (\S+) : (?!Failed to detect chrome|Cannot connect to chrome)")
BROWSER_BROKEN = re.compile(r"skipped (\S+) : ")
FAILED = re.compile(r"(?:FAIL|ERROR): (?:Subtest )?(\S+(?: \(odoo\.\S+\))?)")  # the latter for setUpClass
SUMMARY = re.compile(r"(\d+) failed, (\d+) error\(s\) of \d+ tests when loading database")


@dataclass
class Count:
    """The tests of one run; `failed` holds their names, and sentences about a run that is broken as a whole."""

    passed: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)


class OdooLog:
    """Counts the tests in Odoo's log as it grows, and prints what a reader wants to see of it."""

    def __init__(self):
        self.started, self.skipped, self.failed = set(), set(), set()
        self.summary = None
        self.showing = False

    def read(self, line: str) -> None:
        entry = LOG_LINE.match(line)
        if entry:
            self.showing = entry["level"] in ("WARNING", "ERROR", "CRITICAL")
            self.count(entry)
        if self.showing:  # lines that are no entry, such as a traceback, belong to the one before
            print(line, flush=True)

    def count(self, entry: re.Match) -> None:
        module, message = entry["logger"].removeprefix("odoo.addons."), entry["message"]
        if match := STARTED.match(message):
            self.started.add(f"{module}: {match[1]}")
            print(f"    {module}: {match[1]}", flush=True)
        elif match := SKIPPED.match(message):
            self.skipped.add(f"{module}: {match[1]}")
            print(f"    {message}", flush=True)
        elif match := BROWSER_BROKEN.match(message) or (entry["level"] == "ERROR" and FAILED.match(message)):
            self.failed.add(f"{module}: {match[1]}")
        elif match := SUMMARY.match(message):
            self.summary = match

    def result(self, code: int) -> Count:
        """The count, once Odoo ended with the exit code `code`."""
        failed = sorted(self.failed)
        if self.summary is None:
            failed.append("Odoo ended before its tests did: see .dev/log/odoo-tests.log")
        elif not self.started:
            failed.append("No Odoo test ran")
        elif not failed and (code or self.summary.groups() != ("0", "0")):
            failed.append(f"Odoo ended with exit code {code}: see .dev/log/odoo-tests.log")
        return Count(len(self.started - self.skipped - self.failed), len(self.skipped), failed)


def main(args: list[str]) -> int:
    odoo_only = bool(args) and args[0].startswith("/") and not Path(args[0]).exists()
    counts = []
    if odoo_only or not args:
        counts.append(attempt(run_odoo_tests, args or [f"/{addon}" for addon in ADDONS]))
    if not odoo_only:
        counts.append(attempt(run_system_tests, args))
    failed = [name for count in counts for name in count.failed]
    print()
    for name in failed:
        print(f"FAILED {name}")
    if skipped := sum(count.skipped for count in counts):
        print(f"{skipped} skipped")
    print(f"{sum(count.passed for count in counts)} passed, {len(failed)} failed", flush=True)
    return 1 if failed else 0


def attempt(run: Callable[[list[str]], Count], args: list[str]) -> Count:
    """What `run` counts, or one failure where it does not come to running tests."""
    try:
        return run(args)
    except Problem as problem:
        print(f"\n{problem}", flush=True)
        return Count(failed=[str(problem).splitlines()[0]])


def run_odoo_tests(args: list[str]) -> Count:
    """Run the tests inside the addons that the test tags `args` select."""
    tags = ",".join(args)
    setup.fetch_chromium()
    database = databases.clone()
    say(f"Odoo tests {tags} (log: {fresh_log('odoo-tests').relative_to(ROOT)})")
    command = [*TIME_LIMIT, ODOO_BIN, "-d", database, "-u", ",".join(ADDONS), "--test-tags", tags]
    command += ["--stop-after-init", "--http-port", free_port(), "--max-cron-threads=0"]
    log = OdooLog()
    try:
        return log.result(stream(command, LOG / "odoo-tests.log", log.read))
    finally:
        databases.drop(database)


def run_system_tests(args: list[str]) -> Count:
    """Run pytest with `args`, by default on all of `tests/`."""
    say(f"System tests {' '.join(args)} (log: {fresh_log('system-tests').relative_to(ROOT)})")
    report = DEV / "system-tests.xml"
    report.unlink(missing_ok=True)
    color = f"--color={'yes' if sys.stdout.isatty() else 'no'}"
    command = [*TIME_LIMIT, PYTHON, "-m", "pytest", color, f"--junitxml={report}", *args]
    code = stream(command, LOG / "system-tests.log", partial(print, flush=True))
    count = read_junit(report) if report.exists() else Count()
    if not count.failed and (code or not count.passed):
        count.failed.append("No system test ran" if code in (0, 5) else f"pytest ended with exit code {code}")
    return count


def read_junit(report: Path) -> Count:
    count = Count()
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        # A test that fails and then fails again when it is torn down has two entries.
        name = f"{case.get('classname')}.{case.get('name')}"
        outcomes[name] = outcomes.get(name, set()) | {child.tag for child in case}
    for name, tags in outcomes.items():
        if tags & {"failure", "error"}:
            count.failed.append(name)
        elif "skipped" in tags:
            count.skipped += 1
        else:
            count.passed += 1
    return count


def fresh_log(name: str) -> Path:
    log = LOG / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
