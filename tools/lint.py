"""`make lint`: ruff, pylint-odoo, and the rules of this house that no linter knows."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.console import say
from tools.paths import ADDONS, PYTHON, ROOT

# Where the addon's SQL may be.
SQL_MODULES = {"job_worker/worker/claiming.py", "job_worker/queries.py", "job_worker/lifecycle.py"}

# Each order of events there names the test that tries it.
INTERLEAVINGS = ROOT / "docs" / "interleavings.md"

# Where tests wait for conditions, and nothing else does.
POLLING_MODULE = "tests/harness.py"
# What pylint-odoo asks for and this house does otherwise: README.md instead of .rst, several files for one model, each
# with one reason to exist.
NOT_OURS = "missing-readme,consider-merging-classes-inherited"


def main() -> int:
    addons = [addon for addon in ADDONS if (ROOT / addon).exists()]
    commands = [["ruff", "check", "."], ["ruff", "format", "--check", "."]]
    commands.append(["pylint", f"--disable={NOT_OURS}", *addons])
    failed = False
    for command in commands:
        say(" ".join(command))
        failed |= bool(subprocess.run([PYTHON, "-m", *command], cwd=ROOT, check=False).returncode)
    say("house rules")
    for violation in sorted(violations()):
        print(violation)
        failed = True
    return int(failed)


def violations() -> Iterator[str]:
    """Every breach of a house rule, as `file:line: what`."""
    for folder in (*ADDONS, "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT)
            for node in ast.walk(ast.parse(path.read_text())):
                if breach := next(breaches(name, node), None):
                    yield f"{name}:{node.lineno}: {breach}"
    for number, line in enumerate(INTERLEAVINGS.read_text().splitlines(), 1):
        for test in set(re.findall(r"`(test_\w+)`", line)) - known_tests():
            yield f"{INTERLEAVINGS.relative_to(ROOT)}:{number}: there is no {test}"


@functools.cache
def known_tests() -> set[str]:
    folders = ROOT / "tests", ROOT / "job_worker" / "tests"
    sources = [path.read_text() for folder in folders for path in folder.glob("test_*.py")]
    return set(re.findall(r"^ *def (test_\w+)", "\n".join(sources), re.MULTILINE))


def breaches(name: Path, node: ast.AST) -> Iterator[str]:
    called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    imported = imports(name, node)
    is_test = "tests" in name.parts
    if is_test and called in ("time.sleep", "sleep") and str(name) != POLLING_MODULE:
        yield "tests wait on a condition, they don't sleep"
    if name.parts[0] == "job_worker" and not is_test:
        if called.endswith("cr.execute") and str(name) not in SQL_MODULES:
            yield f"SQL belongs in {' or '.join(sorted(SQL_MODULES))}"
        if any("tests" in module.split(".") for module in imported):
            yield "what runs in production does not import tests"
        if name.parts[1] == "models" and any(module.startswith("job_worker.worker") for module in imported):
            yield "models don't know the worker"


def imports(name: Path, node: ast.AST) -> list[str]:
    """The modules that `node` imports, as dotted paths from the checkout's root."""
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        package = ".".join(name.parts[: -node.level]) + "." if node.level else ""
        base = package + (node.module or "")
        modules = [f"{base.rstrip('.')}.{alias.name}" for alias in node.names]
    else:
        modules = []
    return [module.removeprefix("odoo.addons.") for module in modules]


if __name__ == "__main__":
    sys.exit(main())
