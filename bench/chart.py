"""The chart of the drains for the manual, as SVG written by hand: bars need no library."""

from html import escape

from bench.jobs import TITLES
from tools.paths import ROOT

FILE = ROOT / "docs" / "images" / "bench-drain.svg"

WIDTH, LABELS, ROW, GAP = 760, 200, 20, 34
COLOURS = {"ours": "#714b67", "OCA queue_job": "#e0a030", "bare loop": "#9a9a9a"}
OTHERS = "#6a9fb5"


def draw(drain: dict) -> None:
    """Write the medians of each job's drain, each group of bars on a scale of its own."""
    lines, y = [], 30
    for job, series in drain["jobs"].items():
        lines.append(f'<text x="8" y="{y}" font-weight="bold">{escape(TITLES[job])}, jobs per second</text>')
        y += 8
        # a queue without Odoo that batches its commits would make all other bars a point
        best = max(one["median"] for name, one in series.items() if name != "pgqueuer")
        for name, one in series.items():
            width = min(one["median"] / best, 1.12) * (WIDTH - LABELS - 150)
            colour = next((colour for start, colour in COLOURS.items() if name.startswith(start)), OTHERS)
            more = " →" if one["median"] > 1.12 * best else ""
            lines += [
                f'<text x="{LABELS - 6}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
                f'<rect x="{LABELS}" y="{y + 2}" width="{width:.1f}" height="{ROW - 5}" fill="{colour}"/>',
                f'<text x="{LABELS + width + 6:.1f}" y="{y + 14}">{one["median"]:,.0f}{more}</text>',
            ]
            y += ROW
        y += GAP
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>\n' + "\n".join(lines) + "\n</svg>\n"
    )
