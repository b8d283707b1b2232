"""The queues that are measured, each on a database of its own with its workers running: one interface for all."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import psycopg2

from bench.driver import Driver, driver
from tools import databases
from tools.console import run
from tools.paths import DEV, LOG, ODOO_BIN, ROOT, VENV
from tools.setup import step

HERE = Path(__file__).resolve().parent
PEERS = DEV / "peers"
PEERS_VENV = DEV / "peers-venv"
POLL_SECONDS = 0.02
OCA_CONF = PEERS / "odoo.conf"
OCA_DATABASE = f"{databases.OURS}_bench_oca"

_numbers = itertools.count(1)


def wait_until(condition: Callable, seconds: float = 60, what: str = "the condition") -> object:
    """The first true answer of `condition`, asked every 20 ms; `TimeoutError` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(POLL_SECONDS)
    return answer


class Database:
    """A connection in autocommit mode."""

    def __init__(self, name: str):
        self.name = name
        self._connection = psycopg2.connect(dbname=name)
        self._connection.autocommit = True

    def query(self, sql: str, *params) -> list[tuple]:
        with self._connection.cursor() as cr:
            cr.execute(sql, params or None)
            return cr.fetchall() if cr.description else []

    def value(self, sql: str, *params):
        """First column of the first row."""
        return self.query(sql, *params)[0][0]

    def close(self) -> None:
        self._connection.close()


class Contestant:
    """A queue with a driver that stores jobs and a statement that tells when all have ended."""

    # SQL: whether jobs are left; how many are done; forget all
    unfinished: str
    done: str
    forget: str

    def __init__(self, name: str, db: Database, store: Driver):
        self.name = name
        self.db = db
        self.driver = store

    def drain(self, job: str, count: int, options: dict | None = None, seconds: float = 1800) -> float:
        """Jobs a second from the commit that stores `count` of them to the end of the last."""
        self.db.query(self.forget)
        begin = self.driver("enqueue", job, count, *([options] if options else []))
        self.wait_until_drained(seconds)
        rate = count / (time.monotonic() - begin)
        if (done := self.db.value(self.done)) != count:
            raise RuntimeError(f"{self.name}: {done} of {count} jobs are done")
        return rate

    def wait_until_drained(self, seconds: float = 1800) -> None:
        wait_until(lambda: not self.db.value(self.unfinished), seconds, f"{self.name} ends its jobs")


class Ours(Contestant):
    unfinished = "SELECT EXISTS (SELECT FROM queue_job WHERE state IN ('waiting', 'pending', 'started'))"
    done = "SELECT count(*) FROM queue_job WHERE state = 'done'"
    forget = "TRUNCATE queue_job, queue_job_attempt, queue_limit_starts, test_job_ledger CASCADE"


class Oca(Contestant):
    unfinished = "SELECT EXISTS (SELECT FROM queue_job WHERE state NOT IN ('done', 'failed', 'cancelled'))"
    done = "SELECT count(*) FROM queue_job WHERE state = 'done'"
    forget = "TRUNCATE queue_job CASCADE"


class Procrastinate(Contestant):
    unfinished = "SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))"
    done = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
    forget = "TRUNCATE procrastinate_jobs CASCADE"


class PgQueuer(Contestant):
    # What has ended moves to the log, sooner or later; that it has left the queue is what counts.
    unfinished = "SELECT EXISTS (SELECT FROM pgqueuer)"
    done = "SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'"
    forget = "TRUNCATE pgqueuer, pgqueuer_log"


@contextmanager
def ours_database(name: str = "ours") -> Iterator[Ours]:
    """A fresh database of job_worker with its driver, and no worker yet."""
    database = databases.clone()
    db = Database(database)
    command = [sys.executable, "-m", "bench.driver_odoo", database, "ours"]
    try:
        with driver(command, _environment(PYTHONPATH=f"{ROOT}:{os.environ['PYTHONPATH']}"), _log("ours")) as store:
            yield Ours(name, db, store)
    finally:
        db.close()
        databases.drop(database)


@contextmanager
def ours_worker(contestant: Ours, processes: int, concurrency: int = 2, *options: str) -> Iterator[psutil.Process]:
    """`odoo-bin job_worker` on the database, from when all its processes serve it; its supervisor."""
    command = [ODOO_BIN, "job_worker", "-d", contestant.db.name, f"--processes={processes}"]
    command += [f"--concurrency={concurrency}", "--log-level=warn", *options]
    # but for the one that a backlog is in the hands of
    alive = "SELECT count(*) FROM queue_worker WHERE state != 'dead' AND last_heartbeat != 'infinity'"
    with _running(command, "ours", _environment()) as process:
        wait_until(lambda: contestant.db.value(alive) >= processes, 120, "the workers serve")
        yield psutil.Process(process.pid)
    contestant.db.query("DELETE FROM queue_worker WHERE last_heartbeat != 'infinity'")


@contextmanager
def ours(processes: int, concurrency: int = 2) -> Iterator[Ours]:
    """job_worker on a database of its own, with a worker."""
    name = f"ours, {processes} x {concurrency}"
    with ours_database(name) as contestant, ours_worker(contestant, processes, concurrency):
        contestant.drain("nothing", 200)
        yield contestant


@contextmanager
def floor() -> Iterator[Driver]:
    """The driver of `bench.floor`, on a database of job_worker."""
    database = databases.clone()
    command = [sys.executable, "-m", "bench.floor", database]
    try:
        with driver(command, _environment(PYTHONPATH=f"{ROOT}:{os.environ['PYTHONPATH']}"), _log("floor")) as bare:
            yield bare
    finally:
        databases.drop(database)


@contextmanager
def oca_database() -> Iterator[Oca]:
    """The database of OCA queue_job with its driver; its server does not run."""
    _install_oca()
    db = Database(OCA_DATABASE)
    db.query(Oca.forget)
    command = [sys.executable, "-m", "bench.driver_odoo", OCA_DATABASE, "oca"]
    try:
        with driver(command, _environment(**_oca_environment()), _log("oca")) as store:
            yield Oca("OCA queue_job", db, store)
    finally:
        db.close()


@contextmanager
def oca() -> Iterator[Oca]:
    """OCA queue_job with `--workers=4` and `root:4`, its server running."""
    with oca_database() as contestant:
        port, gevent_port = _free_port(), _free_port()
        command = [ODOO_BIN, "-d", OCA_DATABASE, "--load=base,web,queue_job", "--workers=4", "--max-cron-threads=0"]
        command += [f"--http-port={port}", f"--gevent-port={gevent_port}", "--log-level=warn"]
        queue = {"CHANNELS": "root:4", "HOST": "127.0.0.1", "PORT": str(port)}
        environment = _environment(
            **_oca_environment(), **{f"ODOO_QUEUE_JOB_{name}": value for name, value in queue.items()}
        )
        with _running(command, "oca", environment):
            contestant.drain("nothing", 20)
            yield contestant


@contextmanager
def procrastinate(processes: int = 2) -> Iterator[Procrastinate]:
    """procrastinate, 4 jobs at once in each process."""
    with _standalone("procrastinate", processes, Procrastinate) as contestant:
        yield contestant


@contextmanager
def pgqueuer(processes: int = 2) -> Iterator[PgQueuer]:
    """pgqueuer, which takes jobs in batches and gives none a transaction of its own."""
    with _standalone("pgqueuer", processes, PgQueuer) as contestant:
        yield contestant


@contextmanager
def _standalone(name: str, processes: int, kind: type[Contestant]) -> Iterator[Contestant]:
    _install_peers()
    database = f"{databases.OURS}_bench_{name}"
    databases.drop(database)
    with databases.connect() as cr:
        cr.execute(f"CREATE DATABASE {database}")
    command = [PEERS_VENV / "bin" / "python", HERE / f"driver_{name}.py", database]
    db = Database(database)
    try:
        with driver(command, _environment(PYTHONPATH=""), _log(name)) as store, ExitStack() as workers:
            for _process in range(processes):
                workers.enter_context(_running([*command, "work"], name, _environment(PYTHONPATH="")))
            contestant = kind(name, db, store)
            contestant.drain("nothing", 100)
            yield contestant
    finally:
        db.close()
        databases.drop(database)


@contextmanager
def _running(command: list, name: str, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A program in a session of its own, of which nothing is left afterwards."""
    process = subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=_log(name),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(**changes: str) -> dict[str, str]:
    return {**os.environ, **changes}


def _log(name: str):
    path = LOG / "bench" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


# Installing the peers, once


def _install_peers() -> None:
    requirements = HERE / "requirements-peers.txt"
    with step(PEERS_VENV, requirements.read_text(), sys.version) as wanted:
        if wanted:
            run("venv of the peers", [sys.executable, "-m", "venv", "--clear", PEERS_VENV])
            run("procrastinate, pgqueuer", [PEERS_VENV / "bin" / "pip", "install", "-q", "-r", requirements])


def _oca_environment() -> dict[str, str]:
    return {"ODOO_RC": str(OCA_CONF), "PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}:{PEERS}"}


def _install_oca() -> None:
    """Unpack OCA queue_job, and make the database with it that all runs share."""
    requirements = HERE / "requirements-odoo-peers.txt"
    addon = "".join(path.read_text() for path in sorted((HERE / "oca_bench_jobs").glob("*.py")))
    with step(PEERS, requirements.read_text(), addon) as wanted:
        if wanted:
            shutil.rmtree(PEERS, ignore_errors=True)
            pip = [VENV / "bin" / "pip", "install", "-q", "--no-deps", "--target", PEERS, "-r", requirements]
            run("OCA queue_job", pip)
            databases.drop(OCA_DATABASE)
    conf = []
    for line in Path(os.environ["ODOO_RC"]).read_text().splitlines():
        if line.startswith("addons_path"):
            paths = [path for path in line.partition("=")[2].strip().split(",") if path != str(ROOT)]
            line = f"addons_path = {','.join([*paths, str(PEERS / 'odoo' / 'addons'), str(HERE)])}"
        conf.append(line)
    OCA_CONF.write_text("\n".join(conf) + "\n")
    if not databases.exists(OCA_DATABASE):
        with databases.connect() as cr:
            cr.execute(f"CREATE DATABASE {OCA_DATABASE} TEMPLATE template0")
        command = [ODOO_BIN, "-d", OCA_DATABASE, "-i", "oca_bench_jobs", "--stop-after-init", "--no-http"]
        run("Database with OCA queue_job", command, env=_environment(**_oca_environment()))


def versions() -> dict[str, str]:
    """Of all that takes part."""
    import odoo.release

    with databases.connect() as cr:
        cr.execute("SHOW server_version")
        postgresql = cr.fetchone()[0]
    peers = {}
    for requirements in HERE.glob("requirements*.txt"):
        peers.update(line.split("==") for line in requirements.read_text().splitlines() if "==" in line)
    return {"PostgreSQL": postgresql, "Odoo": odoo.release.version, "Python": sys.version.split()[0], **peers}
