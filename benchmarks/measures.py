"""What can be read from a sample, and how it is shown."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Sample = Mapping[str, Any]
"""What one run of a subject printed."""


class Measure(NamedTuple):
    name: str
    unit: str
    form: str
    """How a number is shown, for `format`."""
    read: Callable[[Sample], float]

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (self.name, self.unit)))


def _value(name: str) -> Callable[[Sample], float]:
    return lambda sample: float(sample[name])


def _rate_of(name: str) -> Callable[[Sample], float]:
    return lambda sample: float(sample[name]) / sample["seconds"]


def _microseconds(name: str) -> Callable[[Sample], float]:
    return lambda sample: 1e6 * float(sample[name]) / sample["events"]


MEASURES = {
    "rate": Measure("", "events/s", ",.0f", _rate_of("events")),
    "cost": Measure("", "µs per event", ",.1f", _microseconds("seconds")),
    "cpu_cost": Measure("CPU", "µs per event", ",.1f", _microseconds("cpu_seconds")),
    "p50": Measure("p50", "ms", ".3f", _value("p50")),
    "p99": Measure("p99", "ms", ".3f", _value("p99")),
    "rss": Measure("memory", "MB", ",.1f", _value("rss")),
    "cpu": Measure("CPU", "% of a core", ".2f", _value("cpu")),
    "died": Measure("requests that died", "", ",.0f", _value("died")),
    "slow": Measure("slow requests", "", ",.0f", _value("slow")),
    "handled": Measure("handled beside them", "events/s", ",.0f", _rate_of("handled")),
    "growth": Measure("worker's growth", "MB/h", "+.2f", _value("growth")),
    "firing_growth": Measure("growth of what fires", "MB/h", "+.2f", _value("firing_growth")),
}
