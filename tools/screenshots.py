"""`python3 -m tools screenshots`: pictures of the web client on the demo database, for the manual, in docs/images/."""

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
from pathlib import Path

import requests
import websocket

from tools import databases, setup
from tools.console import Problem, say
from tools.paths import LOG, ODOO_BIN, ROOT
from tools.test import free_port

# file name: address in the web client, JavaScript that tells when there is something to see
PAGES = {
    "jobs.png": ("/odoo/action-job_worker.queue_job_action", "document.querySelector('.o_list_view .o_data_row')"),
}
WIDTH, HEIGHT = 1440, 660
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

    def holds(self, condition: str) -> bool:
        result = self.call("Runtime.evaluate", expression=f"Boolean({condition})", returnByValue=True)
        return bool(result["result"].get("value"))

    def picture(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools screenshots", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(PAGES), metavar="NAME", help=f"which: {', '.join(PAGES)}")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()

    options.folder.mkdir(parents=True, exist_ok=True)
    setup.fetch_chromium()
    database = databases.demo()
    with serving(database) as url, browser() as page:
        log_in(page, url, database)
        for name in options.names:
            address, condition = PAGES[name]
            page.call("Page.navigate", url=url + address)
            wait(lambda condition=condition: page.holds(condition), f"what {name} is to show")
            # Pictures and fonts come after the rows.
            wait(
                lambda: page.holds("document.fonts.status == 'loaded' && [...document.images].every(i => i.complete)"),
                name,
            )
            (options.folder / name).write_bytes(page.picture())
            say(f"{options.folder / name}")
    return 0


@contextmanager
def serving(database: str) -> Iterator[str]:
    """The address of a web client that runs inside of the block."""
    port = free_port()
    command = [ODOO_BIN, "-d", database, "--http-port", str(port), "--max-cron-threads=0", "--log-level=warn"]
    url = f"http://127.0.0.1:{port}"
    with running(command, "screenshots-odoo.log"):
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
            f"--window-size={WIDTH},{HEIGHT}",
            "about:blank",
        ]
        with running(command, "screenshots-chromium.log"):
            wait(lambda: port_file.exists() and port_file.read_text(), "Chromium")
            tabs = requests.get(f"http://127.0.0.1:{port_file.read_text().split()[0]}/json/list", timeout=10).json()
            page = Page(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
            page.call(
                "Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False
            )
            yield page


def log_in(page: Page, url: str, database: str) -> None:
    parameters = {"db": database, "login": "admin", "password": "admin"}
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
