"""What the tools say on the screen, and programs run with their progress shown there."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools.paths import LOG


class Problem(Exception):
    """Something the user can put right; the message says how."""


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def stream(command: list, log: Path, show: Callable[[str], None], **options) -> int:
    """Run `command`, hand each line of its output to `show`, keep it in `log`, and return the exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            **options,
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            file.flush()
            show(line.rstrip("\n"))
    return process.returncode


def run(title: str, command: list, remedy: str = "", **options) -> list[str]:
    """Run `command` with its last line of output shown live, and return the lines.

    Raises `Problem` with the end of the output and `remedy` when it fails.
    """
    start, lines, live = time.monotonic(), [], sys.stdout.isatty()

    def show(line: str) -> None:
        lines.append(line)
        if live:
            print(f"\r\033[K    {line.strip()[:100]}", end="", flush=True)

    say(title)
    code = stream(command, LOG / "setup.log", show, **options)
    if live:
        print("\r\033[K", end="")
    if code:
        end = "\n".join(lines[-15:])
        raise Problem(f"{title}: failed (exit code {code}).\n{end}\n\n{remedy}".rstrip())
    print(f"    {time.monotonic() - start:.0f} s", flush=True)
    return lines
