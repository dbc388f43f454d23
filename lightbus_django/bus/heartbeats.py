"""Heartbeats: what running processes say of themselves in Redis, with an expiry.

There is a hash for each service and process name, with a field for each start of a process, and an index of these
names. All keys are in one slot of a cluster.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from . import scripts
from .client import RedisClient

INDEX = "{lightbus_django}:processes"
PREFIX = "{lightbus_django}:process:"

INTERVAL = 5.0
"""Seconds between two heartbeats of a process."""

EXPIRY = 30
"""Seconds after which a process without a heartbeat is forgotten."""


class ListenerSign(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a process says of one of its listeners. Times are seconds before the heartbeat."""

    group: str
    listener: str = ""
    events: list[str] = []
    state: str = ""
    stepped: float | None = None
    """Since the thread last came by; None if it has not begun."""
    read: float | None = None
    settled: float | None = None
    in_flight: int = 0
    """The number of events that Redis has given to it and that it has not acknowledged."""
    doing: str = ""
    doing_for: float = 0.0
    event_id: str = ""
    """The event in hand."""
    problem: str = ""
    """Why the listener is interrupted."""


class ProcessSign(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a process says of itself."""

    service_name: str
    process_name: str
    host: str = ""
    pid: int = 0
    version: str = ""
    code_version: str = ""
    started: float = 0.0
    """Seconds before the heartbeat."""
    timeout: float = 60.0
    """The process's ACKNOWLEDGEMENT_TIMEOUT in seconds."""
    listeners: list[ListenerSign] = []
    fires: list[str] = []
    """Names of the events that its service has fired with `on_commit` lately."""
    stuck_jobs: list[str] = []
    """Descriptions of periodic jobs that hang or fail."""


class Heartbeat(msgspec.Struct, frozen=True):
    """A heartbeat as it is in Redis. Times are those of Redis, in seconds since 1970."""

    process: ProcessSign
    first_at: float
    at: float
    read_at: float

    @property
    def age(self) -> float:
        """Seconds since the heartbeat."""
        return self.read_at - self.at


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ProcessSign).decode


def beat(client: RedisClient, start: str, sign: ProcessSign) -> list[Heartbeat]:
    """Store the heartbeat of a process; return those of other processes that run under its name.

    A process that was killed is not among them: both have to have been renewed since the later one started.

    Args:
        start: a text that is different for each start of a process.
    """
    key = PREFIX + _name(sign)
    command = scripts.heartbeat(key, INDEX, start=start, content=_encode(sign), expiry=EXPIRY, member=_name(sign))
    first, now, others = client.execute(command, key)
    own = Heartbeat(sign, float(first), float(now), float(now))
    return [other for other in _parse(others, own.at) if are_doubles(own, other)]


def end(client: RedisClient, start: str, sign: ProcessSign) -> None:
    """Remove the heartbeat of a process that ends."""
    key = PREFIX + _name(sign)
    client.execute(("HDEL", key, start), key)


def read(client: RedisClient) -> list[Heartbeat]:
    """Return the heartbeats of all processes on the bus that have not expired, of any service.

    A process that has started again under its name is there once.
    """
    seconds, microseconds = map(int, client.execute(("TIME",), INDEX))
    now = seconds + microseconds / 1e6
    names = client.execute(("ZRANGEBYSCORE", INDEX, repr(now - EXPIRY), "+inf"), INDEX)
    found: list[Heartbeat] = []
    for name, reply in zip(names, client.send([("HVALS", PREFIX.encode() + name) for name in names]), strict=True):
        if isinstance(reply, Exception):
            raise client.handle_error(reply, name.decode(errors="replace"))
        found += _parse((value.split(b" ", 2) for value in reply), now)
    return sorted(
        (each for each in found if each.age <= EXPIRY and not any(_has_replaced(other, each) for other in found)),
        key=lambda each: (each.process.service_name, each.process.process_name, each.first_at),
    )


def are_doubles(one: Heartbeat, other: Heartbeat) -> bool:
    """Whether two processes run under one name: both were renewed after the later start.

    A process that was killed and has come back is no such case.
    """
    return _have_same_name(one, other) and min(one.at, other.at) > max(one.first_at, other.first_at)


def _has_replaced(one: Heartbeat, other: Heartbeat) -> bool:
    """Whether `one` has started under the name of `other` since that was last heard of."""
    return _have_same_name(one, other) and one.first_at > other.at


def _have_same_name(one: Heartbeat, other: Heartbeat) -> bool:
    return one is not other and _name(one.process) == _name(other.process)


def _parse(rows: Any, now: float) -> Iterator[Heartbeat]:
    for first_at, at, content in rows:
        try:
            process = _decode(content)
        except msgspec.MsgspecError:  # of some later version
            continue
        yield Heartbeat(process, float(first_at), float(at), max(now, float(at)))


def _name(sign: ProcessSign) -> str:
    return f"{sign.service_name}/{sign.process_name}"


def of_listener(heartbeats: Sequence[Heartbeat], group: str) -> list[tuple[Heartbeat, ListenerSign]]:
    """Return what the processes say that run the listener of a consumer group."""
    return [(each, sign) for each in heartbeats for sign in each.process.listeners if sign.group == group]
