"""`make demo`: real work on a fresh database by two worker processes, shown while it happens and checked at the end.

500 partners are exported and geocoded, mails to them are prepared, a report waits for all of it. One more partner has
an address that does not exist: that job fails for good, as it should. Exit code 0 says that each job ended as it should
and that what the jobs were to do is there, once.
"""

import argparse
import csv
import email
import io
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from tools import databases
from tools.console import Problem, say
from tools.geocoder import UNKNOWN_TOWN, Geocoder, locate
from tools.paths import LOG, ODOO_BIN, ROOT

QUOTA = 30  # answers a second
CONCURRENT_REQUESTS = 4  # the limit of the channel demo.geocode
TIME_LIMIT = 110  # seconds
PROCESSES, THREADS = 2, 4
SHOWN_PROBLEMS = 5
WORKER_LOG = LOG / "demo-worker.log"

FIRST_NAMES = (
    "Ada", "Alan", "Barbara", "Claude", "Donald", "Edsger", "Frances", "Grace", "Hedy", "Ivan", "John", "Katherine",
    "Ken", "Leslie", "Margaret", "Niklaus", "Radia", "Sophie", "Tony", "Vint",
)  # fmt: skip
LAST_NAMES = (
    "Almeida", "Baker", "Costa", "Dubois", "Eriksen", "Fischer", "Garcia", "Hansen", "Ivanov", "Jansen", "Keller",
    "Lambert", "Moreau", "Novak", "Olsen", "Peeters", "Quinn", "Rossi", "Silva", "Tanaka", "Ueda", "Virtanen", "Weber",
    "Yilmaz", "Zimmer",
)  # fmt: skip
TOWNS = (
    ("Gent", "be"), ("Lyon", "fr"), ("Kiel", "de"), ("Porto", "pt"), ("Turku", "fi"), ("Nara", "jp"), ("Recife", "br")
)  # fmt: skip
PARTNERS = len(FIRST_NAMES) * len(LAST_NAMES)  # 500

PROGRESS = """
SELECT channel,
       count(*) AS total,
       count(*) FILTER (WHERE state = 'waiting') AS waiting,
       count(*) FILTER (WHERE state = 'pending') AS pending,
       count(*) FILTER (WHERE state = 'started') AS running,
       count(*) FILTER (WHERE state = 'done') AS done,
       sum(greatest(tries - (state = 'failed')::int, 0))::int AS retried,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       count(*) FILTER (WHERE state = 'cancelled') AS cancelled
  FROM queue_job
 CROSS JOIN LATERAL (SELECT count(*) AS tries FROM queue_job_attempt WHERE job_id = queue_job.id) unsuccessful
 GROUP BY channel
 ORDER BY min(priority), min(queue_job.id)
"""

SUMMARY = """
SELECT channel,
       COALESCE((SELECT "limit" FROM queue_limit WHERE name = channel), 1) AS "limit",
       (SELECT NULLIF(rate_limit, 0) FROM queue_limit WHERE name = channel) AS rate,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY duration) AS p50,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY duration) AS p95,
       count(completed_at) / NULLIF(extract(epoch FROM max(completed_at) - min(started_at)), 0)::float AS throughput
  FROM queue_job
 GROUP BY channel
"""


@dataclass
class Expected:
    """How the jobs should end: their ids."""

    done: list[int]
    failed: list[int]


def main() -> int:
    argparse.ArgumentParser(prog="make demo", description=__doc__.partition("\n\n")[0]).parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)

    say("A fresh demo database")
    databases.drop(databases.DEMO)
    databases.clone(databases.DEMO)
    with Geocoder(QUOTA) as geocoder, worker() as process:
        partners, expected = enqueue(geocoder)
        channels = watch(console, process)
    show_summary(console, channels)
    problems = [*job_problems(expected), *result_problems(partners, geocoder)]
    for problem in problems:
        console.print(f"[red]WRONG[/] {escape(problem)}")
    if problems:
        print(f"\nNot every job ended as it should. What the workers said: {WORKER_LOG.relative_to(ROOT)}")
        return 1
    console.print(
        f"[green]Checked:[/] {PARTNERS} partners exported, geocoded and mailed, each once.\n"
        f"The geocoder got {sum(geocoder.answers.values())} requests, at most {geocoder.most_at_once} at once.\n"
        f"It refused {geocoder.answers[429]} (429) and was out of order for {geocoder.answers[503]} (503).\n"
        f"The one failed job is meant to fail: {UNKNOWN_TOWN} is no town. Its on_error job wrote\n"
        "a mail that asks for the address.\n\n"
        "Now look at it all in the web client, at Background Jobs:\n\n"
        "    [bold]make serve[/]    then http://localhost:8069/odoo (login admin, password admin)\n\n"
        "`make shell` opens Python on the same database, `make demo` starts over."
    )
    return 0


@contextmanager
def worker() -> Iterator[subprocess.Popen]:
    """Worker processes on the demo database, as anybody would start them; they end with the block."""
    command = [ODOO_BIN, "job_worker", "-d", databases.DEMO, "--processes", PROCESSES, "--concurrency", THREADS]
    say(f"Starting {PROCESSES} worker processes (log: {WORKER_LOG.relative_to(ROOT)})")
    LOG.mkdir(parents=True, exist_ok=True)
    with WORKER_LOG.open("w") as log:
        # In a session of its own, so that Ctrl-C leaves it to us to end it.
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """End the worker: SIGTERM lets the running jobs finish, a second one gives them back; then without asking."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()] if process.poll() is None else []
    for _signal in range(2):
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
        break
    for member in family:
        if member.is_running():
            member.kill()
    process.wait()


def enqueue(geocoder: Geocoder) -> tuple[list[int], Expected]:
    """Store partners and their jobs in one transaction; return the ids of the partners and how the jobs should end."""
    with databases.environment(databases.DEMO) as env:
        partners = env["res.partner"].create(list(partner_values(env)))
        start = time.monotonic()
        jobs = partners._demo_delay(geocoder.url)
        geocode_lost, ask = env["res.partner"].create(lost_values(env))._demo_delay_lost(geocoder.url)
        env.cr.flush()
        seconds = time.monotonic() - start
        jobs_count = len(jobs | geocode_lost | ask)
        result = partners.ids, Expected(done=(jobs | ask).ids, failed=geocode_lost.ids)
    say(f"{PARTNERS} partners to work on, {jobs_count} jobs enqueued in {seconds:.2f} s")
    return result


def partner_values(env) -> Iterator[dict]:
    for number, (last, first) in enumerate(product(LAST_NAMES, FIRST_NAMES)):
        town, country = TOWNS[number % len(TOWNS)]
        yield {
            "name": f"{first} {last}",
            "email": f"{first}.{last}@example.com".lower(),
            "street": f"{number % 89 + 1} Station Street",
            "zip": f"{1000 + number}",
            "city": town,
            "country_id": env.ref(f"base.{country}").id,
        }


def lost_values(env) -> dict:
    address = {"street": "1 Station Street", "zip": "0000", "city": UNKNOWN_TOWN, "country_id": env.ref("base.be").id}
    return {"name": "Lost Ltd", "email": "office@lost.example.com", **address}


def query(statement: str) -> list[dict]:
    with databases.connect(databases.DEMO) as cursor:
        cursor.execute(statement)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def watch(console: Console, process: subprocess.Popen) -> list[dict]:
    """Show the progress until every job has ended, and return the last state of the channels.

    Raises `Problem` when the worker ends, or the time does, before the jobs.
    """
    start = time.monotonic()
    show = live_display(console) if console.is_terminal else line_display(start)
    with show as update:
        while True:
            channels = query(PROGRESS)
            update(channels)
            unfinished = sum(channel["waiting"] + channel["pending"] + channel["running"] for channel in channels)
            if not unfinished:
                break
            if process.poll() is not None:
                raise Problem(f"The worker ended with exit code {process.returncode}.\n{worker_log_end()}")
            if time.monotonic() - start > TIME_LIMIT:
                raise Problem(f"{unfinished} jobs have not ended after {TIME_LIMIT} s.\n{worker_log_end()}")
            time.sleep(0.25)
    say(f"All jobs ended after {time.monotonic() - start:.0f} s")
    return channels


def worker_log_end() -> str:
    lines = WORKER_LOG.read_text(errors="replace").splitlines()[-10:]
    return "\n".join([f"The log {WORKER_LOG.relative_to(ROOT)} ends:", *lines])


@contextmanager
def live_display(console: Console) -> Iterator:
    """A table that changes in place."""
    with Live(console=console, refresh_per_second=10) as live:
        yield lambda channels: live.update(progress_table(channels, max(8, min(30, console.width - 72))))


@contextmanager
def line_display(start: float) -> Iterator:
    """A line every two seconds and one at the end, for logs."""
    printed, last = start - 2, ""

    def update(channels: list[dict]) -> None:
        nonlocal printed, last
        now = time.monotonic()
        last = f"{now - start:4.0f} s  " + "  ".join(map(progress_words, channels))
        if now - printed >= 2:
            print(last, flush=True)
            printed, last = now, ""

    yield update
    if last:
        print(last, flush=True)


def progress_words(channel: dict) -> str:
    words = f"{channel['channel'].removeprefix('demo.')} {channel['done']}/{channel['total']}"
    details = [f"{channel[key]} {key}" for key in ("running", "retried", "failed") if channel[key]]
    return f"{words} ({', '.join(details)})" if details else words


def progress_table(channels: list[dict], bar_width: int) -> Table:
    states = ("waiting", "pending", "running", "done", "retried", "failed")
    table = Table("channel", "", box=None, padding=(0, 2, 0, 0))
    for state in states:
        table.add_column(state, justify="right", min_width=7)
    for channel in channels:
        ended = channel["done"] + channel["failed"] + channel["cancelled"]
        numbers = [styled(channel[state], state) for state in states]
        bar = ProgressBar(channel["total"], ended, width=bar_width, complete_style="cyan", finished_style="green")
        table.add_row(channel["channel"], bar, *numbers)
    return table


def styled(number: int, state: str) -> str:
    colour = {"running": "cyan", "done": "green", "retried": "yellow", "failed": "red"}.get(state, "default")
    return f"[{colour}]{number}[/]" if number else "[dim]·[/]"


def show_summary(console: Console, channels: list[dict]) -> None:
    table = Table("channel", box=SIMPLE_HEAD)
    for name in ("limit", "done", "retried", "failed", "p50", "p95", "jobs/s"):
        table.add_column(name, justify="right")
    times = {row["channel"]: row for row in query(SUMMARY)}
    for channel in channels:
        row = times[channel["channel"]]
        table.add_row(
            channel["channel"],
            str(row["limit"]) + (f", {row['rate']:g}/s" if row["rate"] else ""),
            *(str(channel[key]) for key in ("done", "retried", "failed")),
            *(f"{row[key] * 1000:.0f} ms" if row[key] else "" for key in ("p50", "p95")),
            f"{row['throughput']:.1f}" if row["throughput"] and channel["total"] > 1 else "",
        )
    console.print(table)


def job_problems(expected: Expected) -> Iterator[str]:
    """What is wrong with the jobs, as sentences."""
    with databases.environment(databases.DEMO) as env:
        states = {**dict.fromkeys(expected.done, "done"), **dict.fromkeys(expected.failed, "failed")}
        wrong = env["queue.job"].browse(states).filtered(lambda job: job.state != states[job.id])
        for job in wrong[:SHOWN_PROBLEMS]:
            error = (job.exc_info or "no error").strip().splitlines()[-1]
            yield f"job {job.id} in {job.channel} is {job.state} and should be {states[job.id]}: {error}"
        if len(wrong) > SHOWN_PROBLEMS:
            yield f"{len(wrong) - SHOWN_PROBLEMS} more jobs did not end as they should"
        if UNKNOWN_TOWN not in (env["queue.job"].browse(expected.failed).exc_info or ""):
            yield "the job that is meant to fail failed for another reason"
        if count := env["queue.job"].search_count([("id", "not in", expected.done + expected.failed)]):
            yield f"there are {count} jobs that nobody enqueued"


def result_problems(partner_ids: list[int], geocoder: Geocoder) -> Iterator[str]:
    """What is wrong with what the jobs should have made, as sentences."""
    with databases.environment(databases.DEMO) as env:
        partners = env["res.partner"].browse(partner_ids)
        found = [(partner.partner_latitude, partner.partner_longitude) for partner in partners]
        addresses = [partner._demo_address() for partner in partners]
        if wrong := sum(place != locate(address) for place, address in zip(found, addresses, strict=True)):
            yield f"{wrong} partners don't have the coordinates of their address"

        attachments = env["ir.attachment"].search([("res_model", "=", "res.partner"), ("create_uid", "=", env.uid)])
        files = attachments.grouped("mimetype")
        exported = [int(row["id"]) for file in files.get("text/csv", ()) for row in read_csv(file.raw)]
        if sorted(exported) != sorted(partner_ids):
            yield f"{len(exported)} rows were exported, {len(set(exported))} of them different, instead of {PARTNERS}"
        mails = [email.message_from_bytes(file.raw)["To"] for file in files.get("message/rfc822", ())]
        lost = env["res.partner"].search([("city", "=", UNKNOWN_TOWN)])
        if sorted(mails) != sorted((partners | lost).mapped("email_formatted")):
            yield f"{len(mails)} mails were prepared, {len(set(mails))} of them different, instead of {PARTNERS + 1}"
        reports = attachments.filtered(lambda file: file.name == "report.txt")
        if len(reports) != 1 or f"with coordinates  {PARTNERS:5}" not in reports.raw.decode():
            yield f"there are {len(reports)} reports, or not on {PARTNERS} geocoded partners"

    if geocoder.most_at_once > CONCURRENT_REQUESTS:
        yield f"the geocoder saw {geocoder.most_at_once} requests at once, the channel allows {CONCURRENT_REQUESTS}"


def read_csv(content: bytes) -> Iterator[dict]:
    return csv.DictReader(io.StringIO(content.decode()))


if __name__ == "__main__":
    sys.exit(main())
