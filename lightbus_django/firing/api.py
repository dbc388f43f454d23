"""`fire` and `on_commit`: the functions that fire events."""

from collections.abc import Iterable, Mapping
from typing import Any

from asgiref.sync import sync_to_async

from lightbus_django.bus.client import get_client
from lightbus_django.conf import get_settings
from lightbus_django.events.codec import Fields, encode, encode_payload
from lightbus_django.events.message import EventMessage, new_message
from lightbus_django.events.names import stream_key
from lightbus_django.exceptions import BusError, ConfigurationError
from lightbus_django.signals import announce, event_published

from .databases import current_database, may_have_outbox
from .outbox import write_to_outbox
from .rows import in_pipelines


def fire(name: str, /, **payload: Any) -> EventMessage:
    """Publish an event now; return it with its id and stream id.

    Raises:
        InvalidEventName, InvalidPayload: nothing was published.
        BusUnavailable: Redis can't be reached or can't serve. The event may or may not be published.
        BusError: Redis refused it.
    """
    settings = get_settings()
    message = new_message(name, payload)
    fields = encode(message, encode_payload(payload, settings.max_payload_size))
    client = get_client(settings.url, settings.redis_timeout)
    return _fired(message, client.append(stream_key(name, settings.stream_use), fields))


def fire_many(events: Iterable[tuple[str, Mapping[str, Any]]], /) -> list[EventMessage]:
    """Publish events now, in order and in few round trips; return them with their ids and stream ids.

    Args:
        events: pairs of event name and payload.

    Raises:
        InvalidEventName, InvalidPayload: nothing was published.
        BusUnavailable, BusError: as `fire` does. Some of the events may be published.
    """
    settings = get_settings()
    client = get_client(settings.url, settings.redis_timeout)
    messages, entries = [], []
    for name, payload in events:
        message = new_message(name, dict(payload))
        messages.append(message)
        fields = encode(message, encode_payload(payload, settings.max_payload_size))
        entries.append((stream_key(name, settings.stream_use), fields))
    fired: list[EventMessage] = []
    for chunk in in_pipelines(entries, _size):
        results = client.append_many(chunk)
        chunk_messages = messages[len(fired) :][: len(chunk)]
        published = [
            _fired(message, result)
            for message, result in zip(chunk_messages, results, strict=True)
            if not isinstance(result, BusError)
        ]
        for result in results:
            if isinstance(result, BusError):
                raise result
        fired += published
    return fired


def _size(entry: tuple[str, Fields]) -> int:
    return sum(map(len, entry[1].values()))


def _fired(message: EventMessage, stream_id: str) -> EventMessage:
    announce(event_published, EventMessage, event_name=message.name, event_id=message.id, is_repeated=False)
    return EventMessage(
        id=message.id,
        api_name=message.api_name,
        event_name=message.event_name,
        payload=message.payload,
        stream_id=stream_id,
    )


async def afire(name: str, /, **payload: Any) -> EventMessage:
    """Publish an event now, from async code, as `fire` does."""
    return await sync_to_async(fire, thread_sensitive=False)(name, **payload)


async def afire_many(events: Iterable[tuple[str, Mapping[str, Any]]], /) -> list[EventMessage]:
    """Publish events now, from async code, as `fire_many` does."""
    return await sync_to_async(fire_many, thread_sensitive=False)(events)


class OnCommit:
    """`on_commit(name, /, **payload)`, and `on_commit.using(alias)` for a database by name."""

    def __init__(self, alias: str | None = None) -> None:
        self._alias = alias

    def using(self, alias: str, /) -> "OnCommit":
        """Return an `on_commit` for transactions of the database `alias`.

        Raises:
            ConfigurationError: the database router does not write OutboxEvent to this database.
        """
        if not may_have_outbox(alias):
            raise ConfigurationError(
                f"The database router does not write OutboxEvent to {alias!r}, so no relay would publish events from "
                "there. Use another database, or change the router: allow_migrate() must allow OutboxEvent in "
                f"{alias!r}, and db_for_write() must return {alias!r} for an instance from there."
            )
        return OnCommit(alias)

    def __call__(self, name: str, /, **payload: Any) -> EventMessage:
        """Publish an event when the current transaction commits; return it with its id.

        The event is written to the outbox in this transaction. If Redis is down or the process dies after the commit, a
        relay publishes it. Outside a transaction, the event is published at once.

        If exactly one database that may have an outbox has a transaction open, that is the current transaction. Else it
        is that of the database to which the router writes OutboxEvent.

        Raises:
            InvalidEventName, InvalidPayload: no row was written, and the transaction can continue.
        """
        message = new_message(name, payload)
        write_to_outbox([message], self._alias or current_database())
        return message


class AsyncOnCommit:
    """`await aon_commit(name, /, **payload)`: `on_commit` for async code."""

    def __init__(self, alias: str | None = None) -> None:
        self._on_commit = OnCommit(alias)

    def using(self, alias: str, /) -> "AsyncOnCommit":
        """Return an `aon_commit` for transactions of the database `alias`; raises as `on_commit.using` does."""
        on_commit.using(alias)
        return AsyncOnCommit(alias)

    async def __call__(self, name: str, /, **payload: Any) -> EventMessage:
        return await sync_to_async(self._on_commit)(name, **payload)


class OnCommitMany:
    """`on_commit_many(events)`, and `on_commit_many.using(alias)` for a database by name."""

    def __init__(self, alias: str | None = None) -> None:
        self._alias = alias

    def using(self, alias: str, /) -> "OnCommitMany":
        """Return an `on_commit_many` for transactions of the database `alias`; raises as `on_commit.using` does."""
        on_commit.using(alias)
        return OnCommitMany(alias)

    def __call__(self, events: Iterable[tuple[str, Mapping[str, Any]]], /) -> list[EventMessage]:
        """Publish events, in order, when the current transaction commits; return them with their ids.

        As `on_commit` for each event, but with few SQL statements. Outside a transaction, the events are written in a
        transaction of their own and published at once.

        Args:
            events: pairs of event name and payload.

        Raises:
            InvalidEventName, InvalidPayload: no row was written, and the transaction can continue.
        """
        messages = [new_message(name, dict(payload)) for name, payload in events]
        if messages:
            write_to_outbox(messages, self._alias or current_database())
        return messages


class AsyncOnCommitMany:
    """`await aon_commit_many(events)`: `on_commit_many` for async code."""

    def __init__(self, alias: str | None = None) -> None:
        self._on_commit_many = OnCommitMany(alias)

    def using(self, alias: str, /) -> "AsyncOnCommitMany":
        """Return an `aon_commit_many` for transactions of the database `alias`; raises as `on_commit.using` does."""
        on_commit.using(alias)
        return AsyncOnCommitMany(alias)

    async def __call__(self, events: Iterable[tuple[str, Mapping[str, Any]]], /) -> list[EventMessage]:
        return await sync_to_async(self._on_commit_many)(events)


on_commit = OnCommit()
on_commit_many = OnCommitMany()
aon_commit = AsyncOnCommit()
aon_commit_many = AsyncOnCommitMany()
