"""Debian packages unpacked into a folder of ours: nothing is installed and root is not needed."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

from tools.console import Problem, run
from tools.paths import CACHE

NETWORK = "Is the network up? `apt-get update` must work on this machine. Then run the same command again."


def is_debian() -> bool:
    """Whether this machine is Debian, with apt."""
    try:
        return platform.freedesktop_os_release()["ID"] == "debian" and bool(shutil.which("apt-get"))
    except OSError:
        return False


def mirror() -> tuple[str, str]:
    """The address of the mirror that the machine's own apt uses for Debian, and the machine's suite."""
    release = platform.freedesktop_os_release().get("VERSION_CODENAME")
    lists = CACHE / "no-lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    # apt itself reads its sources, in whatever format they are written; with no lists at hand it names each suite.
    uris = subprocess.run(
        ["apt-get", "update", "--print-uris", "-o", f"Dir::State::Lists={lists}"], capture_output=True, text=True
    ).stdout
    for address, suite in re.findall(r"^'(\S+)/dists/([^/']+)/InRelease'", uris, re.MULTILINE):
        if suite in {release, "stable", "testing", "unstable", "sid"}:
            return address, suite
    raise Problem("No Debian mirror found in apt's sources.\nAdd one to /etc/apt/sources.list, or set ODOO_HOME.")


def unpack(packages: list[str], suite: str, target: Path, dependencies: bool = False) -> None:
    """Download `packages` of `suite` and unpack them into the folder `target`, all or nothing.

    With `dependencies`, what they depend on and the machine lacks comes along.
    """
    cache = CACHE / "apt" / suite
    for folder in ("lists/partial", "archives/partial"):
        (cache / folder).mkdir(parents=True, exist_ok=True)
    keyring = next(Path("/usr/share/keyrings").glob("debian-archive-keyring.*"), None)
    if keyring is None:
        raise Problem("The keys of Debian's archive are missing: apt-get install debian-archive-keyring")
    sources = cache / "sources.list"
    sources.write_text(f"deb [signed-by={keyring}] {mirror()[0]} {suite} main\n")
    apt = ["apt-get", "-q"]
    for option in (
        f"Dir::Etc::SourceList={sources}",
        "Dir::Etc::SourceParts=/dev/null",
        "Dir::Etc::Preferences=/dev/null",
        "Dir::Etc::PreferencesParts=/dev/null",
        f"Dir::State::Lists={cache / 'lists'}",
        f"Dir::Cache={cache}",
        "APT::Sandbox::User=root",  # apt's own download user could not write here
        "APT::Update::Error-Mode=any",
        "APT::Default-Release=",
        "Acquire::Languages=none",
        "Acquire::Retries=3",
    ):
        apt += ["-o", option]

    run(f"Debian {suite}: package lists", [*apt, "update"], NETWORK)
    if dependencies:
        plan = run(
            f"Debian {suite}: what {' '.join(packages)} needs",
            [*apt, "install", "--simulate", "--no-install-recommends", *packages],
        )
        packages = re.findall(r"^Inst (\S+)", "\n".join(plan), re.MULTILINE)
    downloads = cache / "debs"
    shutil.rmtree(downloads, ignore_errors=True)  # a download cut short is not a package
    downloads.mkdir()
    run(f"Debian {suite}: downloading {len(packages)} packages", [*apt, "download", *packages], NETWORK, cwd=downloads)

    new = target.with_name(f"{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    script = 'for deb in "$1"/*.deb; do dpkg -x "$deb" "$2" || exit; done'
    run(f"Unpacking into {target.name}/", ["sh", "-c", script, "sh", downloads, new], "Is the disk full?")
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
    shutil.rmtree(downloads)
