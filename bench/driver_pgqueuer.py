"""pgqueuer, in the peers' venv: a driver, or with `work` a worker. `driver_pgqueuer.py DATABASE [work]`."""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.queries import Queries

from bench.driver import serve

BATCH = 100

database, *mode = sys.argv[1:]
clock_file = Path(tempfile.gettempdir()) / f"{database}.clock"


def connect():
    return asyncpg.connect(database=database, host=os.environ["PGHOST"], user=os.environ["PGUSER"])


async def work() -> None:
    queue = PgQueuer.from_asyncpg_connection(await connect())

    @queue.entrypoint("nothing")
    async def nothing(_job) -> None:
        """Nothing at all."""

    @queue.entrypoint("clock")
    async def clock(_job) -> None:
        now = time.time()
        with clock_file.open("a") as file:
            file.write(f"{now!r}\n")

    await queue.run(batch_size=BATCH)


def main() -> None:
    if mode:
        uvloop.run(work())
        return
    loop = asyncio.new_event_loop()
    queries = Queries.from_asyncpg_connection(loop.run_until_complete(connect()))
    loop.run_until_complete(queries.install())

    def enqueue(_job: str, count: int) -> float:
        begin = time.monotonic()
        loop.run_until_complete(queries.enqueue(["nothing"] * count, [None] * count, [0] * count))
        return (begin + time.monotonic()) / 2  # it commits by itself, somewhere in between

    def latency(count: int) -> list[list[float]]:
        latencies = []
        for _number in range(count):
            clock_file.write_text("")
            begin = time.time()
            loop.run_until_complete(queries.enqueue("clock", None))
            end = time.time()
            while not (text := clock_file.read_text()).endswith("\n"):
                time.sleep(0.005)
            latencies.append([float(text) - begin, float(text) - end])
        clock_file.unlink()
        return latencies

    serve({"enqueue": enqueue, "latency": latency})


main()
