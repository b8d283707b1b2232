"""`python3 -m tools screenshots`: pictures of the web client with sample jobs, for the manual, in docs/images/."""

import argparse
import base64
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
import websocket

from tools import databases, sample_data, setup
from tools.console import Problem, say
from tools.paths import LOG, ODOO_BIN, ROOT
from tools.test import free_port

DASHBOARD = "document.querySelector('.o_job_worker_channels tr[data-channel]')"
LIST = "document.querySelector('.o_list_view .o_data_row')"
FAILED = "SELECT max(id) FROM queue_job WHERE error_class = 'requests.exceptions.ConnectionError' AND record_id > 999"
CHECKING = "SELECT max(id) FROM queue_job WHERE method_name = '_check_journal' AND state = 'started'"
DESKTOP, PHONE = (1400, 900), (420, 860)


@dataclass
class Screen:
    """What a picture shows: an address in the web client, and JavaScript that tells when there is something to see.

    `job` is SQL for the id that the address gets for its `%s`; `click` selects
    what to press then, `scroll_to` what is to be in the middle.
    """

    address: str
    condition: str
    size: tuple[int, int] = DESKTOP
    job: str | None = None
    click: str | None = None
    scroll_to: str | None = None


SCREENS = {
    "dashboard.png": Screen("/odoo/background-jobs-dashboard", DASHBOARD, click="[data-period=day]"),
    "jobs.png": Screen("/odoo/background-jobs", LIST),
    "failed-job.png": Screen("/odoo/background-jobs/%s", "document.querySelector('.o_form_view pre')", job=FAILED),
    "job-graph.png": Screen(
        "/odoo/background-jobs/%s",
        "document.querySelector('.o_job_graph g')",
        job=CHECKING,
        scroll_to=".o_job_graph",
    ),
    "channels.png": Screen("/odoo/background-channels", "document.querySelector('tr[data-channel]')", (1400, 740)),
    "errors.png": Screen("/odoo/background-errors", LIST, (1400, 560)),
    "dashboard-phone.png": Screen("/odoo/background-jobs-dashboard", DASHBOARD, PHONE),
    "failed-job-phone.png": Screen(
        "/odoo/background-jobs/%s", "document.querySelector('.o_form_view pre')", PHONE, job=FAILED
    ),
}
COMPLETE = (
    "document.fonts.status == 'loaded' && [...document.images].every(i => i.complete)"
    " && !document.querySelector('.o_loading_indicator') && !document.getAnimations().length"
)
PATIENCE_SECONDS = 60


class Page:
    """A page of Chromium, driven through its debugging protocol on the WebSocket `address`."""

    def __init__(self, address: str):
        self._socket = websocket.create_connection(address, timeout=PATIENCE_SECONDS, suppress_origin=True)
        self._numbers = itertools.count(1)

    def call(self, method: str, **parameters) -> dict:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                if "error" in answer:
                    raise Problem(f"Chromium: {method}: {answer['error']['message']}")
                return answer["result"]

    def evaluate(self, expression: str) -> object:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def holds(self, condition: str) -> bool:
        return bool(self.evaluate(f"Boolean({condition})"))

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height}
        self.call("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=width < DESKTOP[0])

    def picture(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools screenshots", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SCREENS), metavar="NAME", help=f"which: {', '.join(SCREENS)}")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()

    options.folder.mkdir(parents=True, exist_ok=True)
    setup.fetch_chromium()
    database = databases.clone()
    try:
        with databases.environment(database) as env:
            env["queue.limit"].search(["|", ("name", "=like", "test.%"), ("name", "=like", "demo.%")]).unlink()
            sample_data.fill(env, running=True)
        with serving(database) as url, browser() as page:
            log_in(page, url, database)
            for name in options.names:
                (options.folder / name).write_bytes(take(page, url, database, SCREENS[name]))
                say(f"{options.folder / name}")
    finally:
        databases.drop(database)
    return 0


def take(page: Page, url: str, database: str, screen: Screen) -> bytes:
    """A picture of the screen."""
    address = screen.address
    with databases.connect(database) as cursor:
        # The workers of the sample are words on paper: somebody has to say for them that they are alive.
        cursor.execute("UPDATE queue_worker SET last_heartbeat = now() AT TIME ZONE 'UTC'")
        if screen.job:
            cursor.execute(screen.job)
            address %= cursor.fetchone()
    page.resize(*screen.size)
    page.call("Page.navigate", url=url + address)
    wait(lambda: page.holds(screen.condition), f"what {address} is to show")
    if screen.click:
        page.evaluate(f"document.querySelector('{screen.click}').click()")
        wait(lambda: page.holds(f"document.querySelector('{screen.click}.active')"), f"{screen.click} of {address}")
    if screen.scroll_to:
        page.evaluate(f"document.querySelector('{screen.scroll_to}').scrollIntoView({{block: 'center'}})")
    # Pictures and fonts come after the rows.
    wait(lambda: page.holds(COMPLETE), address)
    return page.picture()


@contextmanager
def serving(database: str, *options: str, log: str = "screenshots-odoo.log") -> Iterator[str]:
    """The address of a web client that runs inside of the block."""
    port = free_port()
    command = [ODOO_BIN, "-d", database, "--http-port", str(port), "--max-cron-threads=0", "--log-level=warn"]
    url = f"http://127.0.0.1:{port}"
    with running([*command, *options], log):
        wait(lambda: answers(f"{url}/web/health"), "Odoo")
        yield url


@contextmanager
def browser() -> Iterator[Page]:
    """An empty page of a headless Chromium, which ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        port_file = Path(profile, "DevToolsActivePort")
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ]
        command += [
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            f"--window-size={DESKTOP[0]},{DESKTOP[1]}",
            "about:blank",
        ]
        with running(command, "screenshots-chromium.log"):
            wait(lambda: port_file.exists() and port_file.read_text(), "Chromium")
            tabs = requests.get(f"http://127.0.0.1:{port_file.read_text().split()[0]}/json/list", timeout=10).json()
            yield Page(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))


def log_in(page: Page, url: str, database: str, login: str = "admin") -> None:
    """Open a session in the browser; the passwords of development databases are like the logins."""
    parameters = {"db": database, "login": login, "password": login}
    with requests.Session() as session:
        session.post(f"{url}/web/session/authenticate", json={"params": parameters}, timeout=60).raise_for_status()
        page.call("Network.setCookie", name="session_id", value=session.cookies["session_id"], url=url, httpOnly=True)


@contextmanager
def running(command: list, log: str) -> Iterator[None]:
    """Run a program inside of the block."""
    LOG.mkdir(parents=True, exist_ok=True)
    with (LOG / log).open("w") as file:
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise Problem(f"Waited {PATIENCE_SECONDS} s for {what}: see the logs in {LOG}.")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
