"""The results as a page of the manual, written anew with every run: the page and the JSON file tell the same."""

from collections.abc import Iterable

from bench.jobs import TITLES
from tools.paths import ROOT

FILE = ROOT / "docs" / "measurements.md"
SLOWEST_SCREENS = 8
_HEAD = """# Measurements

Written by `make bench` from `bench/results/latest.json`, a part at a time; [performance](performance.md) tells how to
read it and what was found. Numbers are the median, with minimum and maximum, of the rounds.
"""


def write(results: dict) -> None:
    """Write the page.

    :param results: what the JSON file holds, by part
    """
    parts = [name for name in _RENDER if name in results]
    lines = [_HEAD, "## Where the goals stand", ""]
    goals = [(part, goal) for part in parts for goal in results[part].get("goals", ())]
    rows = [
        [f"{part}: {goal['goal']}", goal["wanted"], _number(goal["measured"]), "yes" if goal["met"] else "**no**"]
        for part, goal in goals
    ]
    lines += _table(["goal", "asked for", "measured", "met"], rows)
    for part in parts:
        lines += ["", *_RENDER[part](results[part]), "", f"{_origin(results[part])}"]
    FILE.write_text("\n".join(lines) + "\n")


def _origin(part: dict) -> str:
    machine, versions = part["machine"], part["versions"]
    on = f"{machine['cores']} cores ({machine['processor']}), {machine['memory (GiB)']} GiB, {machine['system']}"
    return f"`{part['command']}`, {part['at'][:10]}; {on}; {', '.join(f'{name} {v}' for name, v in versions.items())}"


def _drain(part: dict) -> list[str]:
    jobs = {TITLES[job]: rows for job, rows in part["jobs"].items()}
    return ["## Drain, jobs a second", "", *_series(jobs), "", "![Jobs done per second](images/bench-drain.svg)"]


def _enqueue(part: dict) -> list[str]:
    rows = [
        [title, *map(_spread, rows.values()), f"{rows['ours']['ratio']:.1f}"] for title, rows in part["series"].items()
    ]
    return ["## Enqueue, jobs a second", "", *_table(["", *next(iter(part["series"].values())), "ratio"], rows)]


def _latency(part: dict) -> list[str]:
    lines = [f"## Idle latency, ms, {part['samples']} jobs each"]
    for since, series in part["series"].items():
        names = dict.fromkeys(name.rpartition(", ")[0] for name in series)
        rows = [[name, *(_spread(series[f"{name}, {p}"]) for p in ("p50", "p95", "p99"))] for name in names]
        lines += ["", *_table([since, "p50", "p95", "p99"], rows)]
    return lines


def _backlog(part: dict) -> list[str]:
    rows = [
        [name, _spread(drain), f"{1 / drain['ratio']:.2f}", _spread(later), f"{later['ratio']:.2f}"]
        for (name, drain), later in zip(part["drain"].items(), part["latency"].values(), strict=True)
    ]
    columns = ["backlog", "drain, jobs/s", "time, to empty table", "idle latency p50, ms", "to empty table"]
    return [f"## Beside a backlog of {part['rows']:,} rows", "", *_table(columns, rows)]


def _snapshot(part: dict) -> list[str]:
    return ["## With a snapshot held, jobs a second", "", *_series({"drain": part["drain"]})]


def _limits(part: dict) -> list[str]:
    rows = [
        [
            limit,
            str(max(most)),
            _spread(part["shares"][f"limit {limit}"]),
            _spread(part["rates"][f"limit {limit}"]),
            _spread(part["rates"][f"{limit} slots, no limit"]),
        ]
        for limit, most in part["most_at_once"].items()
    ]
    columns = ["limit", "most at once", "seats taken", "jobs/s", "jobs/s with as many slots and no limit"]
    return ["## Limits, 8 processes x 4 threads, jobs of 20 ms of waiting", "", *_table(columns, rows)]


def _facts(title: str):
    def render(part: dict) -> list[str]:
        rows = [[name, _number(value)] for name, value in part["found"].items()]
        return [f"## {title}", "", *_table(["", ""], rows)]

    return render


def _scaling(part: dict) -> list[str]:
    rows = [[name, _spread(row), f"{row['share of the possible']:.2f}"] for name, row in part["drain"].items()]
    costs = {next(iter(rows.values()))["unit"]: rows for rows in part["costs"].values()}
    return [
        "## More processes, jobs that wait 50 ms",
        "",
        *_table(["", "jobs/s", "share of what the slots could do"], rows),
        "",
        "What a job costs:",
        "",
        *_series(costs),
    ]


def _screens(part: dict) -> list[str]:
    slowest = sorted(part["requests"], key=lambda name: -part["requests"][name]["median"])[:SLOWEST_SCREENS]
    rows = [[name, _spread(part["requests"][name]), _spread(part["queries"][name])] for name in slowest]
    columns = ["screen", "request, ms", "its slowest query, ms"]
    count = len(part["requests"])
    return [f"## Screens with {part['rows']:,} jobs: the slowest of {count}", "", *_table(columns, rows)]


_RENDER = {
    "drain": _drain,
    "enqueue": _enqueue,
    "latency": _latency,
    "backlog": _backlog,
    "snapshot": _snapshot,
    "limits": _limits,
    "rate": _facts("Rate limit"),
    "idle": _facts("Idle worker"),
    "memory": _facts("Memory"),
    "scaling": _scaling,
    "screens": _screens,
}


def _series(columns: dict[str, dict[str, dict]]) -> list[str]:
    """A table of series: a column for each key, a row for each name in any of them."""
    names = dict.fromkeys(name for rows in columns.values() for name in rows)
    rows = [[name, *(_spread(series[name]) if name in series else "" for series in columns.values())] for name in names]
    return _table(["", *columns], rows)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _spread(series: dict) -> str:
    if len(series["values"]) == 1:
        return _number(series["median"])
    return f"{_number(series['median'])} ({_number(series['min'])} to {_number(series['max'])})"


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
