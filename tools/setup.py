"""Make the environment in `.dev/`, once; with nothing to do it takes a few milliseconds.

Needs nothing but Python's standard library. Whatever moment it is killed at, the next call goes on from the last step
that was finished: a step writes its stamp last, or renames a finished folder into place.
"""

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools import debian, postgres
from tools.console import Problem, run, say
from tools.paths import BIN, CACHE, CHROMIUM, CONF, DATA, DEV, ODOO, ODOO_BIN, PGBOUNCER, PYTHON, ROOT, VENV, odoo_home

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
NEEDED_GB = 3

# Odoo is not on PyPI; Debian's unstable suite has it. Its web client needs these libraries and fonts beside it.
ODOO_PACKAGES = [
    "odoo-19",
    "libjs-jquery",
    "libjs-jquery-form",
    "libjs-underscore",
    "fonts-font-awesome",
    "fonts-roboto-unhinted",
    "fonts-montserrat",
    "fonts-inconsolata",
]


def ensure() -> None:
    """Fetch Odoo and build the venv where that has not been done yet."""
    with locked("setup"):
        if not VENV.exists() or not odoo_home().exists():
            check_disk()
        fetch_odoo()
        build_venv()
        write_conf()


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock `name` of this checkout; another process that wants it waits."""
    DEV.mkdir(exist_ok=True)
    with (DEV / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another process that holds the {name} lock …")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def step(folder: Path, *inputs: str) -> Iterator[bool]:
    """Tell whether `folder` still has to be made from `inputs`; stamp it when the block ends without an error."""
    key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()
    stamp = folder / ".made-from"
    wanted = not stamp.exists() or stamp.read_text() != key
    yield wanted
    if wanted:
        stamp.write_text(key)


def check_disk() -> None:
    free = shutil.disk_usage(DEV).free / 1e9
    if free < NEEDED_GB:
        raise Problem(f"{NEEDED_GB} GB of free disk space are needed in {DEV}, {free:.1f} GB are left. Make room.")


def fetch_odoo() -> None:
    if "ODOO_HOME" in os.environ:
        if not (odoo_home() / "odoo" / "release.py").exists():
            raise Problem(f"ODOO_HOME={odoo_home()} holds no odoo/release.py: set it to the top folder of an Odoo 19.")
        return
    with step(ODOO, *ODOO_PACKAGES) as wanted:
        if wanted and not debian.is_debian():
            raise Problem("This is not Debian, so Odoo can't be fetched: set ODOO_HOME=/path/to/odoo (an Odoo 19).")
        if wanted:
            debian.unpack(ODOO_PACKAGES, "sid", ODOO)


def build_venv() -> None:
    # The folder is part of the key because a venv does not survive being moved.
    with step(VENV, REQUIREMENTS.read_text(), str(VENV), sys.version) as wanted:
        if not wanted:
            return
        remedy = "Install Python's venv module: apt-get install python3-venv"
        run("Python venv", [sys.executable, "-m", "venv", "--clear", VENV], remedy)
        pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        run(
            "Python libraries",
            [*pip, "install", "--progress-bar=off", f"--cache-dir={CACHE / 'pip'}", "-r", REQUIREMENTS],
            "Is the network up, and the disk not full? Run the same command again: what was downloaded is kept.",
        )


def fetch_chromium() -> None:
    """Put a `chromium` for browser tests into `.dev/bin`, where the machine has none."""
    path = os.environ["PATH"].replace(f"{BIN}:", "")
    if any(shutil.which(name, path=path) for name in ("google-chrome", "chromium", "chromium-browser")):
        return
    if not debian.is_debian():
        say("No chromium on the PATH: browser tests are skipped. Install it to run them.")
        return
    with locked("chromium"), step(CHROMIUM) as wanted:
        if wanted:
            debian.unpack(["chromium"], debian.mirror()[1], CHROMIUM, dependencies=True)
    write_chromium()


def fetch_pgbouncer() -> None:
    """Put a `pgbouncer` for the tests behind a pooler into `.dev/bin`, where the machine has none."""
    path = os.environ["PATH"].replace(f"{BIN}:", "")
    if shutil.which("pgbouncer", path=path):
        return
    if not debian.is_debian():
        raise Problem("There is no pgbouncer on the PATH: install it to run the tests behind a pooler.")
    with locked("pgbouncer"), step(PGBOUNCER) as wanted:
        if wanted:
            debian.unpack(["pgbouncer"], debian.mirror()[1], PGBOUNCER, dependencies=True)
    write(
        BIN / "pgbouncer",
        f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries(PGBOUNCER)}" exec "{PGBOUNCER}/usr/sbin/pgbouncer" "$@"\n',
        mode=0o755,
    )


def libraries(folder: Path) -> str:
    """The folders below `folder` that hold shared libraries, as the loader wants them."""
    return ":".join(sorted({str(path.parent) for path in folder.rglob("*.so*")}))


def write_chromium() -> None:
    """Write `.dev/bin/chromium`, which finds its libraries and fonts in `.dev/`."""
    fonts = CHROMIUM / "fonts.conf"
    write(
        fonts,
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n'
        f"<fontconfig><dir>/usr/share/fonts</dir><dir>{ODOO / 'usr/share/fonts'}</dir>"
        f"<cachedir>{CACHE / 'fontconfig'}</cachedir></fontconfig>\n",
    )
    write(
        BIN / "chromium",
        "#!/bin/sh\n"
        f'export LD_LIBRARY_PATH="{libraries(CHROMIUM)}" FONTCONFIG_FILE="{fonts}"\n'
        f'export XDG_CACHE_HOME="{CACHE}" XDG_CONFIG_HOME="{CACHE}"\n'
        f'exec "{CHROMIUM}/usr/lib/chromium/chromium" "$@"\n',
        mode=0o755,
    )


def write_conf() -> None:
    """Write `.dev/odoo.conf` and `.dev/bin/odoo-bin`, which behaves as Odoo's own."""
    home = odoo_home()
    paths = [home / "odoo" / "addons", home / "addons", ROOT]
    # Servers of the user's own, and ours of another version, come in the environment, which goes before this file.
    database = {} if postgres.external() else postgres.Server.embedded().environment()
    # Debian's package keeps all addons in the first folder; the second is there too, without their data files.
    if (paths[0] / "web").exists():
        paths.remove(home / "addons")
    write(
        CONF,
        "[options]\n"
        f"addons_path = {','.join(map(str, paths))}\n"
        f"data_dir = {DATA}\n"
        "http_interface = 127.0.0.1\n"
        "list_db = False\n" + "".join(f"db_{key[2:].lower()} = {value}\n" for key, value in database.items()),
    )
    write(
        ODOO_BIN,
        f"""#!/bin/sh
"exec" "{PYTHON}" "$0" "$@"
import os
import sys

sys.path.insert(0, {str(home)!r})
os.environ["PYTHONPATH"] = {str(home)!r}
os.environ.setdefault("ODOO_RC", {str(CONF)!r})

import odoo.cli

odoo.cli.main()
""",
        mode=0o755,
    )


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a whole file, in such a way that nobody ever reads half of it."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(text)
    new.chmod(mode)
    new.rename(path)
