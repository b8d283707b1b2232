"""What a run tells: tables on the screen, one JSON file, one chart."""

import json
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from bench import tables
from bench.contestants import versions
from bench.measure import Series

RESULTS = Path(__file__).with_name("results") / "latest.json"

_console = Console(width=None if sys.stdout.isatty() else 120)


def machine() -> dict[str, str | int]:
    model = next(
        (line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")), platform.machine()
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory (GiB)": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "load at the start": round(os.getloadavg()[0], 2),
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def heading(text: str) -> None:
    _console.rule(text)


def table(title: str, series: dict[str, Series], unit: str, base: str | None = None) -> dict:
    """Print medians with min and max, and the ratio of each to `base`; the same for JSON."""
    shown = Table(title=f"{title} ({unit})", title_justify="left")
    for column in ("", "median", "min", "max"):
        shown.add_column(column, justify="right" if column else "left")
    if base:
        shown.add_column(f"ratio to {base}", justify="right")
    rows = {}
    for name, one in series.items():
        rows[name] = {"unit": unit, **one.as_dict()}
        cells = [name, *(f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in _summary(one))]
        if base and series[base].median:
            rows[name]["ratio"] = one.median / series[base].median
            cells.append(f"{rows[name]['ratio']:.2f}")
        shown.add_row(*cells)
    _console.print(shown)
    return rows


def facts(title: str, rows: dict[str, str | float]) -> dict:
    """Print names and values; the same for JSON."""
    shown = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        shown.add_row(name, f"{value:,.4g}" if isinstance(value, float) else str(value))
    _console.print(shown)
    return rows


def _summary(series: Series) -> tuple[float, float, float]:
    return series.median, min(series.values), max(series.values)


def goals(rows: list[tuple[str, str, float, bool]]) -> list[dict]:
    """Print goals with what was measured and whether they are met."""
    if not rows:
        return []
    shown = Table("goal", "asked for", "measured", "met", title="Goals", title_justify="left")
    for name, wanted, value, met in rows:
        shown.add_row(name, wanted, f"{value:.4g}", "yes" if met else "no")
    _console.print(shown)
    return [{"goal": name, "wanted": wanted, "measured": value, "met": met} for name, wanted, value, met in rows]


def save(command: str, results: dict) -> None:
    """Add the parts of this run to the JSON file and the manual; the others stay as an earlier run left them."""
    everything = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    stamp = {
        "command": command,
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }
    for part, result in results.items():
        everything[part] = {**stamp, **result}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(everything, indent=1) + "\n")
    # in the order that is in the file, where the keys of dictionaries are strings
    tables.write(json.loads(RESULTS.read_text()))
