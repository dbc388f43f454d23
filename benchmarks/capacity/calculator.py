"""What a workload needs. All of it is plain arithmetic with the measured figures."""

from math import ceil
from typing import NamedTuple

import msgspec

from .figures import Figures

DAY = 86_400.0
MICRO = 1e-6
GB = 1e9

OWN_CONNECTIONS = 5
"""Connections to Redis that a worker process has besides those of its threads."""

PRUNING_SHARE = 0.05
"""From this share of a core of PostgreSQL on that deletes rows, partitions are worth it."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. Retentions are in days."""

    events_per_day: float
    peak: float = 3.0
    """The rate of the busiest minutes, as a multiple of the mean."""
    payload: int = 200
    """Bytes of JSON."""
    listeners: int = 1
    """How many listeners get an event."""
    on_commit: float = 1.0
    """The share of events that are fired with `on_commit`, and not with `fire`."""
    inbox: float = 1.0
    """The share of deliveries to listeners that are idempotent."""
    failed: float = 0.0001
    """The share of deliveries that become dead letters."""
    handler: float = 0.0
    """Milliseconds of CPU time that a handler itself takes."""
    stream_retention: float = 1.0
    inbox_retention: float = 30.0
    outbox_retention: float = 7.0
    failed_retention: float = 90.0
    threads: int = 8


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """What there is: one server of each kind, and how far it may be used."""

    use: float = 0.6
    """The share of a core that may be in use at the peak."""
    redis_memory: float = 64.0
    postgresql_cores: int = 16
    postgresql_disk: float = 2_000.0
    """In GB, as `redis_memory`."""
    connections: int = 100
    """`max_connections` of PostgreSQL."""


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a workload needs, in cores at the peak, and in bytes."""

    mean: float
    peak: float
    firing_cores: float
    worker_cores: float
    redis_cores: float
    postgresql_cores: float
    deleting_cores: float
    stream: float
    confirmations: float
    outbox: float
    inbox: float
    failed: float
    outbox_rows: float
    inbox_rows: float

    @property
    def worker_processes(self) -> int:
        """A process of Python keeps one core busy."""
        return max(1, ceil(self.worker_cores))

    @property
    def redis_memory(self) -> float:
        return self.stream + self.confirmations

    @property
    def postgresql_disk(self) -> float:
        return self.outbox + self.inbox + self.failed

    @property
    def wants_partitions(self) -> bool:
        return self.deleting_cores > PRUNING_SHARE


class Limit(NamedTuple):
    """What is reached at so many events a day, and what to do then."""

    events_per_day: float
    what: str
    remedy: str


def needs(workload: Workload, figures: Figures, use: float) -> Needs:
    """Return what a workload needs.

    Args:
        use: the share of a core that may be in use at the peak.
    """
    mean = workload.events_per_day / DAY
    peak = mean * workload.peak
    outboxed, fired = workload.on_commit, 1 - workload.on_commit
    kept = workload.listeners * workload.inbox
    unkept = workload.listeners - kept
    outbox_rows = workload.events_per_day * outboxed
    inbox_rows = workload.events_per_day * kept
    failed_rows = workload.events_per_day * workload.listeners * workload.failed
    handling = kept * figures.handle.python + unkept * figures.handle_without_inbox.python
    redis = (
        outboxed * figures.on_commit.redis
        + fired * figures.fire.redis
        + kept * figures.handle.redis
        + unkept * figures.handle_without_inbox.redis
    )
    return Needs(
        mean=mean,
        peak=peak,
        firing_cores=_cores(peak, outboxed * figures.on_commit.python + fired * figures.fire.python, use),
        worker_cores=_cores(peak, handling + workload.listeners * workload.handler * 1000, use),
        redis_cores=_cores(peak, redis, use),
        postgresql_cores=_cores(peak, outboxed * figures.on_commit.postgresql + kept * figures.handle.postgresql, use),
        deleting_cores=_cores((outbox_rows + inbox_rows) / DAY, figures.delete.postgresql, 1.0),
        stream=workload.events_per_day * workload.stream_retention * figures.stream.of(workload.payload),
        # They are kept until a relay marks their rows, which it does every second.
        confirmations=peak * outboxed * figures.confirmation,
        outbox=outbox_rows * workload.outbox_retention * figures.outbox.of(workload.payload),
        inbox=inbox_rows * workload.inbox_retention * figures.inbox,
        failed=failed_rows * workload.failed_retention * figures.failed.of(workload.payload),
        outbox_rows=outbox_rows * workload.outbox_retention,
        inbox_rows=inbox_rows * workload.inbox_retention,
    )


def database_connections(processes: int, threads: int, listeners: int) -> int:
    """Return how many connections to one database worker processes need at most."""
    return processes * (min(threads, listeners) + 1)


def redis_connections(processes: int, threads: int, listeners: int) -> int:
    """Return how many connections to a single Redis worker processes need at most."""
    return processes * (min(threads, listeners) + OWN_CONNECTIONS)


def limits(workload: Workload, figures: Figures, machines: Machines) -> list[Limit]:
    """Return what is reached first, second and so on, if the workload grows and everything else stays."""
    need = needs(workload, figures, machines.use)
    connections = database_connections(1, workload.threads, workload.listeners)
    processes = machines.connections // connections
    use_of = [
        (need.worker_cores, 1, "one worker process", "more processes: `--processes`"),
        (need.redis_cores, 1, "one core of Redis", "a cluster: streams of different APIs on different nodes"),
        (
            need.redis_memory,
            machines.redis_memory * GB,
            "the memory of Redis",
            "a shorter STREAM_RETENTION, or a cluster",
        ),
        (
            need.postgresql_cores,
            machines.postgresql_cores,
            "the cores of PostgreSQL",
            "`fire`, `idempotent=False` or batch handlers where they suffice",
        ),
        (
            need.postgresql_disk,
            machines.postgresql_disk * GB,
            "the disk of PostgreSQL",
            "a shorter INBOX_RETENTION and OUTBOX_RETENTION",
        ),
        (need.deleting_cores, PRUNING_SHARE, "deleting old rows one by one", "partitions"),
        (
            need.worker_cores,
            processes,
            f"connections of PostgreSQL: {processes} processes",
            "fewer THREADS, a pooler, or more max_connections",
        ),
    ]
    reached = [
        Limit(workload.events_per_day * available / used, what, remedy)
        for used, available, what, remedy in use_of
        if used
    ]
    return sorted(reached)


def _cores(rate: float, microseconds: float, use: float) -> float:
    return rate * microseconds * MICRO / use
