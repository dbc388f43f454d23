"""The catalogue: which events there are, what is in them, who fires them and who listens, in all services."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from lightbus_django.bus import entries, heartbeats
from lightbus_django.bus.client import RedisClient, get_client
from lightbus_django.conf import format_name, get_settings
from lightbus_django.database.errors import transient_errors
from lightbus_django.events.codec import Fields, decode
from lightbus_django.events.names import is_name, stream_key
from lightbus_django.events.times import is_ahead, stream_time
from lightbus_django.exceptions import NotAStream, UnreadableEvent
from lightbus_django.firing.databases import databases_with_tables
from lightbus_django.listening.registry import registry
from lightbus_django.models import OutboxEvent

SAMPLE = 100
"""Number of the latest entries of each stream that are looked at."""

_TYPES = {
    str: "text",
    int: "number",
    float: "number",
    bool: "boolean",
    list: "list",
    dict: "object",
    type(None): "null",
}


class Subscriber(msgspec.Struct, frozen=True, order=True):
    """A listener of some service."""

    service_name: str
    listener: str
    group: str


class CatalogueEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event by its name."""

    name: str
    stream: str
    fired_by: list[str]
    """Services that fire it, as far as their workers know from the outbox."""
    subscribers: list[Subscriber]
    payload: dict[str, str]
    """The keys that the latest events had, each with the types of their values."""
    last_at: datetime | None
    """When the last one of the sample was published; in UTC."""


def read_catalogue() -> list[CatalogueEvent]:
    """Return the events that are known to this service or to any running worker on the bus, by name.

    Raises:
        BusError, DatabaseUnavailable
    """
    settings = get_settings()
    service_name = format_name(settings.service_name)
    client = get_client(settings.url, settings.redis_timeout)
    fired_by: defaultdict[str, set[str]] = defaultdict(set)
    subscribers: defaultdict[str, set[Subscriber]] = defaultdict(set)
    for listener in registry:
        for event in listener.events:
            subscribers[event].add(Subscriber(service_name, listener.listener_name, listener.group(service_name)))
    for heartbeat in heartbeats.read(client):
        process = heartbeat.process
        for event in process.fires:
            fired_by[event].add(process.service_name)
        for sign in process.listeners:
            for event in sign.events:
                subscribers[event].add(Subscriber(process.service_name, sign.listener, sign.group))
    for event in _fired_lately():
        fired_by[event].add(service_name)
    names = {name for name in {*fired_by, *subscribers} if is_name(name)}
    samples = _Samples(client, sorted({stream_key(name, settings.stream_use) for name in names}))
    return [
        CatalogueEvent(
            name=name,
            stream=stream_key(name, settings.stream_use),
            fired_by=sorted(fired_by[name]),
            subscribers=sorted(subscribers[name]),
            payload=samples.payload_of(name),
            last_at=samples.last_at.get(name),
        )
        for name in sorted(names | samples.last_at.keys())
    ]


def _fired_lately() -> Iterable[str]:
    for alias in databases_with_tables():
        with transient_errors(alias):
            yield from OutboxEvent.objects.using(alias).latest_names()


class _Samples:
    """The latest events of some streams."""

    def __init__(self, client: RedisClient, streams: Iterable[str]) -> None:
        self.last_at: dict[str, datetime | None] = {}
        self._keys: defaultdict[str, defaultdict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        for stream in streams:
            with suppress(NotAStream):
                self._add(entries.latest(client, stream, SAMPLE))

    def _add(self, latest: Iterable[tuple[str, Fields]]) -> None:
        now = datetime.now(UTC)
        for stream_id, fields in latest:
            try:
                message = decode(fields, stream_id)
            except UnreadableEvent:
                continue
            at = None if is_ahead(stream_id, now) else stream_time(stream_id)
            self.last_at.setdefault(message.name, at)
            for key, value in message.payload.items():
                self._keys[message.name][key][_TYPES.get(type(value), "text")] += 1

    def payload_of(self, name: str) -> dict[str, str]:
        """Return the keys of an event with the types of their values."""
        return {key: " or ".join(sorted(types)) for key, types in sorted(self._keys.get(name, {}).items())}
