"""procrastinate, in the peers' venv: a driver, or with `work` a worker. `driver_procrastinate.py DATABASE [work]`."""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

from bench.driver import serve

database, *mode = sys.argv[1:]
worker_app = App(connector=PsycopgConnector(conninfo=f"dbname={database}"))
clock_file = Path(tempfile.gettempdir()) / f"{database}.clock"


@worker_app.task(name="nothing")
async def nothing():
    """Nothing at all."""


@worker_app.task(name="clock")
async def clock():
    now = time.time()
    with clock_file.open("a") as file:
        file.write(f"{now!r}\n")


async def work() -> None:
    async with worker_app.open_async():
        await worker_app.run_worker_async(concurrency=4, wait=True, install_signal_handlers=True)


def main() -> None:
    if mode:
        asyncio.run(work())
        return
    connector = SyncPsycopgConnector(conninfo=f"dbname={database}")

    def enqueue(_job: str, count: int) -> float:
        begin = time.monotonic()
        worker_app.tasks["nothing"].batch_defer(*({} for _number in range(count)))
        return (begin + time.monotonic()) / 2  # it commits by itself, somewhere in between

    def latency(count: int) -> list[list[float]]:
        latencies = []
        for _number in range(count):
            clock_file.write_text("")
            begin = time.time()
            worker_app.tasks["clock"].defer()
            end = time.time()
            while not (text := clock_file.read_text()).endswith("\n"):
                time.sleep(0.005)
            latencies.append([float(text) - begin, float(text) - end])
        clock_file.unlink()
        return latencies

    with worker_app.replace_connector(connector) as app, app.open():
        app.schema_manager.apply_schema()
        serve({"enqueue": enqueue, "latency": latency})


main()
