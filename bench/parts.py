"""The parts of the benchmark: each takes the options of the command line and returns what goes into the JSON file."""

from bench.costs import idle, memory, scaling
from bench.drain import drain
from bench.enqueue import enqueue
from bench.flatness import backlog, snapshot
from bench.latency import latency
from bench.limits import limits, rate
from bench.screens import screens

PARTS = {
    "drain": drain,
    "enqueue": enqueue,
    "latency": latency,
    "backlog": backlog,
    "snapshot": snapshot,
    "limits": limits,
    "rate": rate,
    "idle": idle,
    "memory": memory,
    "scaling": scaling,
    "screens": screens,
}
