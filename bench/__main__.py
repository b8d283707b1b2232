"""`python -m bench [PART …] [--rounds N] [--jobs N]`; without a part, all of them."""

import argparse
import shlex
import sys

from bench import chart, parts, report
from bench.contestants import versions
from tools.console import say


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description="Benchmarks. Parts: " + ", ".join(parts.PARTS))
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure (default: everything)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument(
        "--jobs", type=int, help="jobs in each measurement; fewer are quicker and less exact (default: by the part)"
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each backlog (default: 1,000,000)")
    parser.add_argument("--seconds", type=float, default=60, help="length of what runs for a time (default: 60)")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts.PARTS):
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(parts.PARTS)}")
    command = f'make bench ARGS="{shlex.join(sys.argv[1:])}"'
    report.heading(command)
    report.facts("Machine and versions", {**report.machine(), **versions()})
    for name in options.parts or parts.PARTS:
        say(f"{name}: {parts.PARTS[name].__doc__.splitlines()[0]}")
        result = parts.PARTS[name](options)
        # each part when it is measured: a run that is stopped keeps what it has
        report.save(command, {name: result})
        if name == "drain":
            chart.draw(result)


if __name__ == "__main__":
    main()
