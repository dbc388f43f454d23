"""What a status consists of: processes, listeners, outboxes and streams, each with what needs attention."""

from datetime import datetime

import msgspec


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process that runs listeners, by its heartbeat."""

    name: str
    service_name: str
    host: str
    pid: int
    version: str
    code_version: str
    seconds_running: float
    seconds_silent: float
    """Since its last heartbeat."""
    listeners: list[str]
    """The consumer groups whose listeners it runs."""
    in_hand: list[str]
    """What its threads are doing."""
    events_in_hand: list[str]
    """The ids of the events that they handle."""
    per_minute: float
    """How many events it handled in each of the last five whole minutes, on average."""
    minutes: list[int]
    """How many events it handled in each of the last sixty minutes, the current one last."""
    paused: list[str] = []
    """The consumer groups whose listeners rest, because they were paused."""
    problems: list[str]

    @property
    def is_healthy(self) -> bool:
        return not self.problems


class ListenerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A listener of this service, over all processes and streams."""

    name: str
    group: str
    events: list[str]
    streams: list[str]
    database: str
    waiting: int | None
    """Events that it wants and has not read; None if it has no group yet, or if `unknown_streams` has any."""
    is_exact: bool
    """False if `waiting` is an estimate."""
    in_hand: int
    """Events that it has read and not acknowledged, without those of `unknown_streams`."""
    oldest: datetime | None
    """When the oldest of these events was published; in UTC."""
    seconds_behind: float
    """How old that event is; 0 if there is none."""
    retrying: int
    dead_letters: int
    per_minute: float
    p50: float | None
    p95: float | None
    """How many seconds after its publication half of the events of the last hour were handled, and 95 % of them."""
    minutes: list[int]
    """How many events were handled in each of the last sixty minutes, the current one last."""
    minutes_failed: list[int]
    """How many attempts failed in each of them."""
    minutes_p50: list[float | None]
    minutes_p95: list[float | None]
    """The latencies of the events that were handled in each of them; None if there were none."""
    processes: list[str]
    """The processes that run it, by their heartbeats."""
    is_running: bool
    """Whether any process runs it, with or without a heartbeat; true if that is unknown."""
    paused_at: datetime | None
    paused_by: str
    unknown_streams: list[str] = []
    """Those of its streams that could not be read, because Redis or a node of the cluster is down, for instance."""
    problems: list[str]


class Outbox(msgspec.Struct, frozen=True, kw_only=True):
    """The outbox of one database."""

    database: str
    unpublished: int
    refused: int
    seconds_behind: float
    """How long ago the oldest unpublished event was fired; 0 if there is none."""


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that this service listens to or fires to."""

    key: str
    length: int
    memory: int | None
    """In bytes; None if Redis can't tell."""
    held_by: str
    """The consumer group that is furthest behind; until it goes on, nothing after its position is trimmed."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a service. `problems` are those that concern no listener or process alone."""

    service_name: str
    bus: str
    at: datetime
    processes: list[Process]
    listeners: list[ListenerStatus]
    outboxes: list[Outbox]
    streams: list[Stream]
    problems: list[str]
    minutes_p50: list[float | None] = []
    minutes_p95: list[float | None] = []
    """The latencies of all listeners' events in each of the last sixty minutes; empty if Redis could not be asked."""
    is_redis_known: bool = True
    """False if Redis could not be asked."""
    unknown_databases: list[str] = []
    """Those that could not be asked."""
    silent_consumers: list[str] = []
    """Consumers that read events and write no heartbeat: processes of an earlier version, or some that just ended."""

    def all_problems(self) -> list[str]:
        """Return all problems, each with the name of what it concerns."""
        return [
            *self.problems,
            *(f"process {each.name}: {problem}" for each in self.processes for problem in each.problems),
            *(f"listener {each.name}: {problem}" for each in self.listeners for problem in each.problems),
        ]
