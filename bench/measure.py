"""Measurements in rounds, and what is told about them."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.console import say


@dataclass
class Series:
    """The values that one measurement gave, a round each."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_dict(self) -> dict:
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "values": self.values}


def interleaved(rounds: int, measurements: dict[str, Callable[[], float]]) -> dict[str, Series]:
    """Take every measurement once a round: what disturbs the machine for a while disturbs all of them.

    The order turns from round to round, so that none always follows the same other.
    """
    series = {name: Series() for name in measurements}
    names = list(measurements)
    for number in range(rounds):
        for name in names:
            begin = time.monotonic()
            value = measurements[name]()
            series[name].values.append(value)
            say(f"round {number + 1} of {rounds}: {name}: {value:,.4g} ({time.monotonic() - begin:.0f} s)")
        names = names[1:] + names[:1]
    return series


def percentile(values: list[float], percent: float) -> float:
    """By the nearest rank."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]
