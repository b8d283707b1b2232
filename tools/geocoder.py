"""A geocoding service as the Internet has them, slow, rate-limited and at times out of order; on loopback only."""

import hashlib
import json
import threading
import time
from collections import Counter, deque
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

UNKNOWN_TOWN = "Nowhere"
LATENCY_SECONDS = 0.04


def locate(address: str) -> tuple[float, float]:
    """Latitude and longitude of `address` in degrees: made up, and always the same."""
    digest = _digest(address)
    latitude, longitude = int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")
    return round(latitude / 2**32 * 120 - 60, 5), round(longitude / 2**32 * 360 - 180, 5)


def outages(address: str) -> int:
    """How often the service is out of order before it answers for `address`: twice, once, or for most of them never."""
    luck = _digest(address)[8]
    return 2 if luck < 4 else 1 if luck < 24 else 0


def _digest(address: str) -> bytes:
    return hashlib.sha256(address.encode()).digest()


class Geocoder:
    """The service, and what it saw of its clients. A context manager: it serves inside of the block.

    `quota` is the number of answers it gives in any second; who asks for more gets "429 Too Many Requests".
    """

    def __init__(self, quota: int):
        self.quota = quota
        self.answers = Counter()  # by HTTP status
        self.most_at_once = 0
        self._at_once = 0
        self._outages = Counter()
        self._accepted = deque(maxlen=quota)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/locate"

    def __enter__(self) -> "Geocoder":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, address: str) -> tuple[HTTPStatus, dict]:
        """Status and body for a request for `address`."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(LATENCY_SECONDS)
        with self._lock:
            self._at_once -= 1
            status = self._status(address)
            self.answers[status] += 1
        if status != HTTPStatus.OK:
            return status, {"error": status.phrase}
        latitude, longitude = locate(address)
        return status, {"latitude": latitude, "longitude": longitude}

    def _status(self, address: str) -> HTTPStatus:
        now = time.monotonic()
        if len(self._accepted) == self.quota and now - self._accepted[0] < 1:
            return HTTPStatus.TOO_MANY_REQUESTS
        self._accepted.append(now)
        if self._outages[address] < outages(address):
            self._outages[address] += 1
            return HTTPStatus.SERVICE_UNAVAILABLE
        return HTTPStatus.NOT_FOUND if UNKNOWN_TOWN in address else HTTPStatus.OK

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                address = parse_qs(urlsplit(self.path).query).get("address", [""])[0]
                status, body = service.answer(address)
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                if status == HTTPStatus.TOO_MANY_REQUESTS:
                    self.send_header("Retry-After", "1")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                """Keep quiet: the demo tells what there is to tell."""

        return Handler
