"""Databases for tests and demos, cloned in a second from templates that have the addons installed.

Two templates are kept per server: one with what the addons depend on, one with the addons installed on a clone of that.
Each is named after what it was made from, so that a change makes a new one, and the old one is dropped.
"""

import ast
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
from psycopg2 import sql

from tools.console import Problem, run
from tools.paths import ADDONS, DATA, ODOO_BIN, ROOT, odoo_home
from tools.postgres import Server
from tools.setup import locked

# All names start with a word for this checkout and server, so that nobody else's database or files are touched.
OURS = "jw" + hashlib.sha256(f"{ROOT} {os.environ.get('PGHOST')} {os.environ.get('PGPORT')}".encode()).hexdigest()[:6]
DEMO = f"{OURS}_demo"
FILESTORE = DATA / "filestore"
# As in every copy, the queue has to be told that this is its database now.
NEUTRALIZE = ROOT / "job_worker" / "data" / "neutralize.sql"

DROP_TRIES = 50
DROP_WAIT_SECONDS = 0.2

_numbers = itertools.count(1)


def clone(name: str | None = None) -> str:
    """Make a fresh database with both addons installed as they are on disk, and return its name.

    Without a `name` it gets one of its own; what a killed process left behind under such a name is dropped.
    """
    with locked("databases"):
        source = _template()
        if name is None:
            _drop_abandoned()
            name = f"{OURS}_clone_{os.getpid()}_{next(_numbers)}"
        _copy(source, name)
    return name


def clone_to(server: Server) -> str:
    """Like `clone`, on another server of the same version, such as `postgres.throwaway()` gives.

    The database goes with that server; `drop` removes the files that stay here.
    """
    name = clone()
    here, there = dict(os.environ), {**os.environ, **server.environment()}
    subprocess.run([server.programs / "createdb", name], env=there, check=True)
    dump = [server.programs / "pg_dump", "--no-owner", "--no-comments", name]
    restore = [server.programs / "psql", "--quiet", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-d", name]
    with subprocess.Popen(dump, env=here, stdout=subprocess.PIPE) as dumping:
        subprocess.run(restore, env=there, stdin=dumping.stdout, stdout=subprocess.DEVNULL, check=True)
    subprocess.run([*restore, "-f", NEUTRALIZE], env=there, check=True)
    _drop_database(name)
    return name


def drop(name: str) -> None:
    """Drop the database `name` if there is one, whoever is connected, and its files."""
    _drop_database(name)
    shutil.rmtree(FILESTORE / name, ignore_errors=True)


def exists(name: str) -> bool:
    """Whether there is a database `name`."""
    return name in _names()


def template() -> str:
    """The name of the database that `clone` copies, made first where it is missing. Don't connect to it."""
    with locked("databases"):
        return _template()


def demo() -> str:
    """The name of the demo database: made where it is missing, its addons updated where their code has changed."""
    if not exists(DEMO):
        return clone(DEMO)
    with connect() as cursor:
        cursor.execute("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", [DEMO])
        code = cursor.fetchone()[0]
    if code != code_hash():
        _odoo("Updating the demo database", DEMO, "-u", ",".join(ADDONS))
        _remember_code(DEMO)
    return DEMO


@contextmanager
def environment(name: str) -> Iterator:
    """Odoo's environment for the administrator in the database `name`; committed at the end of the block."""
    # Odoo is on the path only in the environment that `make` sets up.
    from odoo import api
    from odoo.modules import initialize_sys_path
    from odoo.modules.registry import Registry
    from odoo.tools import config

    config.parse_config(["-d", name, "--log-level=warn"], setup_logging=True)
    initialize_sys_path()
    with Registry(name).cursor() as cr:
        admin = api.Environment(cr, api.SUPERUSER_ID, {}).ref("base.user_admin")
        yield api.Environment(cr, admin.id, {})


@contextmanager
def connect(name: str = "postgres") -> Iterator[psycopg2.extensions.cursor]:
    """A cursor in autocommit mode on the database `name` of the current server."""
    connection = psycopg2.connect(dbname=name)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def code_hash() -> str:
    """A hash over whatever can change what the addons' installation makes of a database."""
    digest = hashlib.sha256(_base_hash().encode())
    for path in sorted(path for addon in ADDONS for path in (ROOT / addon).rglob("*")):
        inside = path.relative_to(ROOT)
        if path.is_file() and not {"static", "tests", "__pycache__"} & set(inside.parts):
            digest.update(f"{inside}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _base_hash() -> str:
    release = odoo_home() / "odoo" / "release.py"
    return hashlib.sha256(f"{release} {release.stat().st_mtime_ns} {_dependencies()}".encode()).hexdigest()[:12]


def _dependencies() -> list[str]:
    manifests = [ROOT / addon / "__manifest__.py" for addon in ADDONS]
    if missing := [str(path) for path in manifests if not path.exists()]:
        raise Problem(f"Missing: {', '.join(missing)}")
    depends = {"base", "web"}.union(*(ast.literal_eval(path.read_text())["depends"] for path in manifests))
    return sorted(depends - set(ADDONS))


def _template() -> str:
    base, full = f"{OURS}_base_{_base_hash()}", f"{OURS}_addons_{code_hash()}"
    names = _names()
    if full not in names:
        for name in names:
            if re.match(f"{OURS}_(base|addons|new)", name) and name != base:
                drop(name)
        if base not in names:
            _make_template(base, _dependencies())
        _make_template(full, ADDONS, source=base)
    return full


def _make_template(name: str, modules: Iterable[str], source: str | None = None) -> None:
    new = f"{OURS}_new"
    if source:
        _copy(source, new)
    _odoo(f"Template database: installing {', '.join(modules)}", new, "-i", ",".join(modules))
    with connect(new) as cursor:
        cursor.execute("SELECT name FROM ir_module_module WHERE state = 'installed'")
        if missing := set(modules).difference(name for (name,) in cursor.fetchall()):
            raise Problem(f"Odoo did not install {', '.join(missing)}: see the log in .dev/log/setup.log")
    shutil.rmtree(FILESTORE / name, ignore_errors=True)
    if (FILESTORE / new).exists():
        (FILESTORE / new).rename(FILESTORE / name)
    # Last, because a database with this name counts as complete.
    with connect() as cursor:
        cursor.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(new), sql.Identifier(name)))


def _odoo(title: str, database: str, *args: str) -> None:
    run(title, [ODOO_BIN, "-d", database, *args, "--stop-after-init", "--no-http"])


def _copy(source: str, name: str) -> None:
    with connect() as cursor:
        cursor.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(source)))
    _make_its_own(name)
    _remember_code(name)
    if (FILESTORE / source).exists():
        # Odoo never writes into a file it has stored, so the copies can share them.
        shutil.copytree(FILESTORE / source, FILESTORE / name, copy_function=os.link, dirs_exist_ok=True)


def _make_its_own(name: str) -> None:
    with connect(name) as cursor:
        cursor.execute("SELECT to_regclass('queue_job')")
        if cursor.fetchone()[0]:
            cursor.execute(NEUTRALIZE.read_text())


def _remember_code(name: str) -> None:
    with connect() as cursor:
        cursor.execute(sql.SQL("COMMENT ON DATABASE {} IS %s").format(sql.Identifier(name)), [code_hash()])


def _names() -> list[str]:
    with connect() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        return [name for (name,) in cursor.fetchall()]


def _drop_database(name: str) -> None:
    with connect() as cursor:
        for tries in itertools.count(1):
            try:
                cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
                return
            except psycopg2.errors.InsufficientPrivilege:  # autovacuum is at work there, which only a superuser may end
                if tries == DROP_TRIES:
                    raise
                time.sleep(DROP_WAIT_SECONDS)


def _drop_abandoned() -> None:
    for name in {*_names(), *(path.name for path in FILESTORE.glob("*"))}:
        match = re.match(rf"{OURS}_clone_(\d+)_", name)
        if match and not Path(f"/proc/{match[1]}").exists():
            drop(name)
