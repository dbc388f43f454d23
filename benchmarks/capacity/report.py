"""What the calculator says, as text."""

import re
import textwrap
from collections.abc import Iterable
from math import ceil

from .calculator import GB, Limit, Machines, Needs, Workload, database_connections, limits, needs, redis_connections
from .figures import PAYLOADS, Figures

_NUMBER = re.compile(r"[\d,]+|-")

NOT_MEASURED = "There are no measured figures yet: run `python -m benchmarks capacity --measure`."


WIDTH = 110


def describe(workload: Workload, figures: Figures, machines: Machines) -> str:
    """Return what a workload needs, and what is reached first."""
    need = needs(workload, figures, machines.use)
    rates = f"{need.mean:,.0f}/s on average, {need.peak:,.0f}/s at the peak"
    return "\n".join(
        [
            f"{workload.events_per_day:,.0f} events a day: {rates}",
            "",
            *_aligned(_needs(workload, need, machines)),
            "",
            "If everything grows, this is reached first:",
            "",
            *_aligned(_limit(limit, workload) for limit in limits(workload, figures, machines)),
            "",
            textwrap.fill(f"Calculated with figures of {_provenance(figures)}.", WIDTH),
        ]
    )


def describe_figures(figures: Figures) -> str:
    """Return the figures, and what they were measured on."""
    costs = [
        ("fire", figures.fire),
        ("on_commit", figures.on_commit),
        ("handle", figures.handle),
        ("handle, idempotent=False", figures.handle_without_inbox),
        ("delete an old row", figures.delete),
    ]
    small, large = (f"{payload:,} bytes" for payload in PAYLOADS)
    sizes = [
        ("entry of a stream", figures.stream),
        ("row of the outbox", figures.outbox),
        ("failed event", figures.failed),
    ]
    return "\n".join(
        [
            textwrap.fill(f"{_provenance(figures)}.", WIDTH),
            "",
            *_aligned(
                [
                    ["events a second per core of", "Python", "Redis", "PostgreSQL"],
                    *([name, *map(_rate, (cost.python, cost.redis, cost.postgresql))] for name, cost in costs),
                ]
            ),
            "",
            *_aligned(
                [
                    ["bytes of an event, with a payload of", small, large],
                    *([name, f"{size.small:,.0f}", f"{size.large:,.0f}"] for name, size in sizes),
                    ["row of the inbox", f"{figures.inbox:,.0f}", f"{figures.inbox:,.0f}"],
                    [
                        "confirmation, until its row is marked",
                        f"{figures.confirmation:,.0f}",
                        f"{figures.confirmation:,.0f}",
                    ],
                ]
            ),
        ]
    )


def _needs(workload: Workload, need: Needs, machines: Machines) -> list[list[str]]:
    processes, threads, listeners = need.worker_processes, workload.threads, workload.listeners
    to_database = database_connections(processes, threads, listeners)
    partitions = "by day, see docs/partitioning.md" if need.wants_partitions else "not needed"
    return [
        ["workers", f"{need.worker_cores:,.1f} cores: {_count(processes, 'process', 'processes')}"],
        ["firing", f"{need.firing_cores:,.1f} cores, in the processes that fire"],
        ["Redis", f"{need.redis_cores:,.1f} cores: {_nodes(need, machines)}"],
        ["", f"{_bytes(need.stream)} of streams for {_days(workload.stream_retention)}"],
        ["", f"{redis_connections(processes, threads, listeners):,} connections of workers"],
        ["PostgreSQL", f"{need.postgresql_cores:,.1f} cores"],
        ["", f"outbox: {need.outbox_rows:,.0f} rows, {_bytes(need.outbox)} for {_days(workload.outbox_retention)}"],
        ["", f"inbox: {need.inbox_rows:,.0f} rows, {_bytes(need.inbox)} for {_days(workload.inbox_retention)}"],
        ["", f"failed events: {_bytes(need.failed)} for {_days(workload.failed_retention)}"],
        ["", f"{to_database:,} connections of workers"],
        ["", f"deleting old rows one by one: {need.deleting_cores:,.2f} cores all day; partitions: {partitions}"],
    ]


def _nodes(need: Needs, machines: Machines) -> str:
    nodes = max(ceil(need.redis_cores), ceil(need.redis_memory / (machines.redis_memory * GB)))
    return (
        "a single server" if nodes <= 1 else f"a cluster of {max(nodes, 3):,} masters with {machines.redis_memory:g} GB"
    )


def _limit(limit: Limit, workload: Workload) -> list[str]:
    rounded = float(f"{limit.events_per_day:.2g}")
    passed = "already passed: " if limit.events_per_day < workload.events_per_day else ""
    return [f"{rounded:,.0f}", "events a day", f"{passed}{limit.what}; then {limit.remedy}"]


def _provenance(figures: Figures) -> str:
    """Return when, how and on what the figures were measured; the scale is in the command."""
    machine = ", ".join(f"{name} {value}" for name, value in figures.machine.items())
    return f"{figures.date[:10]}, `{figures.command}`: {machine}"


def _rate(microseconds: float) -> str:
    return f"{1e6 / microseconds:,.0f}" if microseconds else "-"


def _days(days: float) -> str:
    return f"{days:g} day{'' if days == 1 else 's'}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _aligned(rows: Iterable[list[str]]) -> list[str]:
    """Return rows as lines, with columns of one width; numbers, and what is above them, are on the right."""
    columns = [_column(list(column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def _column(cells: list[str]) -> list[str]:
    width = max(map(len, cells))
    is_numeric = all(_NUMBER.fullmatch(cell) for cell in cells[1:])
    return [cell.rjust(width) if is_numeric else cell.ljust(width) for cell in cells]
