"""What may stand between a worker and its server."""

import contextlib
import os
import select
import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

from tests.harness import wait_until
from tools import postgres, setup


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Network:
    """Passes connections on to the server until they are told to go dead.

    Use it in a ``with`` block; :attr:`environment` leads a worker through it.
    """

    def __init__(self, server):
        self._server = server
        self._pairs = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.environment = {"PGHOST": "127.0.0.1", "PGPORT": str(self._listener.getsockname()[1])}

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error):
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                end.close()

    def go_dead(self):
        """Leave the connections of this moment half open: the server's end is gone, and the worker is told nothing.

        :return: how many there were
        """
        pairs, self._pairs = self._pairs, []
        for _near, far in pairs:
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _address = self._listener.accept()
                pair = near, self._connect()
                self._pairs.append(pair)
                threading.Thread(target=self._pass_on, args=(pair,), daemon=True).start()

    def _connect(self):
        host, port = self._server["PGHOST"], self._server.get("PGPORT", "5432")
        if not host.startswith("/"):
            return socket.create_connection((host, int(port)))
        far = socket.socket(socket.AF_UNIX)
        far.connect(f"{host}/.s.PGSQL.{port}")
        return far

    def _pass_on(self, pair):
        near, far = pair
        with contextlib.suppress(OSError):
            while True:
                for end in select.select(pair, [], [])[0]:
                    data = end.recv(65536)
                    if pair not in self._pairs:
                        return  # what comes from the worker is acknowledged and lost
                    if not data:
                        near.close()
                        far.close()
                        return
                    (far if end is near else near).sendall(data)


@contextmanager
def pgbouncer(server, folder: Path, pool_size):
    """PgBouncer in transaction mode before the server: each transaction may get another session.

    :param dict server: the variables that lead to the server
    :param int pool_size: sessions on the server
    :return: the variables that lead to PgBouncer
    """
    setup.fetch_pgbouncer()
    port = free_port()
    target = f"host={server['PGHOST']} port={server.get('PGPORT', 5432)} user={server['PGUSER']}"
    if password := os.environ.get("PGPASSWORD"):
        target += f" password={password}"
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\npool_mode = transaction\ndefault_pool_size = {pool_size}\nmax_client_conn = 500\n"
    )
    command = [*postgres.unprivileged(), shutil.which("pgbouncer"), "-q", settings]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(port), what="PgBouncer listens")
        yield {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": server["PGUSER"]}
    finally:
        process.terminate()
        process.wait()


def _answers(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False
