"""Measures the figures on this machine, in some minutes."""

import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine
from benchmarks.databases import Databases
from benchmarks.measures import Sample
from benchmarks.runner import Plan, Runner
from benchmarks.scenario import Subject
from benchmarks.subjects.stopwatch import MEASURES_SERVERS

from .figures import PAYLOADS, Cost, Figures, Size

ROUNDS = 3


def measure(redis_url: str, databases: Databases, scale: float, tell: Callable[[str], None]) -> Figures:
    """Measure everything; `tell` says what is measured.

    Raises:
        Unavailable: there is no PostgreSQL.
        SubjectFailed: a run failed, or did not count right.
    """
    os.environ[MEASURES_SERVERS] = "1"
    url = databases.url("postgres")
    runner = Runner(Plan(), redis_url, databases, Path())

    def run(name: str, events: int, **options: Any) -> Sample:
        tell(name)
        events = max(100, round(events * scale))
        return runner.run_once(Subject(name, name, name, options), {"events": events, **options}, url)

    def cost(name: str, events: int, **options: Any) -> Cost:
        return _median([_cost(run(name, events, **options)) for _ in range(ROUNDS)])

    def sizes(name: str) -> tuple[Sample, Sample]:
        small, large = (run(name, 5_000, payload=payload) for payload in PAYLOADS)
        return small, large

    outbox = sizes("sizes.outbox")
    return Figures(
        machine=machine.describe(redis_url, url),
        command=f"python -m benchmarks {' '.join(sys.argv[1:])}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        fire=cost("firing.ours", 20_000),
        on_commit=_minus(cost("committing.ours", 10_000), cost("committing.row_alone", 10_000)),
        handle=cost("consuming.ours", 20_000),
        handle_without_inbox=cost("consuming.ours", 100_000, idempotent=False),
        delete=cost("pruning.ours", 50_000),
        stream=_size(*sizes("sizes.stream")),
        outbox=_size(*outbox),
        inbox=run("sizes.inbox", 5_000)["bytes"],
        failed=_size(*sizes("sizes.failed")),
        confirmation=outbox[0]["confirmation"],
    )


def _size(small: Sample, large: Sample) -> Size:
    return Size(small=small["bytes"], large=large["bytes"])


def _cost(sample: Mapping[str, float]) -> Cost:
    def microseconds(name: str) -> float:
        return 1e6 * sample.get(name, 0.0) / sample["events"]

    return Cost(
        python=microseconds("cpu_seconds"),
        redis=microseconds("redis_seconds"),
        postgresql=microseconds("postgresql_seconds"),
    )


def _median(costs: list[Cost]) -> Cost:
    return Cost(
        python=median(cost.python for cost in costs),
        redis=median(cost.redis for cost in costs),
        postgresql=median(cost.postgresql for cost in costs),
    )


def _minus(cost: Cost, other: Cost) -> Cost:
    """Return what is left of a cost without another one, for which the clock may be too coarse."""
    return Cost(
        python=max(0.0, cost.python - other.python),
        redis=max(0.0, cost.redis - other.redis),
        postgresql=max(0.0, cost.postgresql - other.postgresql),
    )
