"""`fire` and `on_commit`: how an event gets on its way."""

from collections.abc import Iterable, Mapping
from typing import Any

from asgiref.sync import sync_to_async

from lightbus_django.bus.client import get_client
from lightbus_django.conf import get_settings
from lightbus_django.events.chunks import chunks
from lightbus_django.events.codec import Fields, encode, encode_payload
from lightbus_django.events.message import EventMessage, new_message
from lightbus_django.events.names import stream_key
from lightbus_django.exceptions import BusError, ConfigurationError
from lightbus_django.models import is_written

from .outbox import current_database, stage
from .relay import RELAY_BYTES, RELAY_SIZE


def fire(name: str, /, **payload: Any) -> EventMessage:
    """Publish an event now; return it with its id and stream id.

    Raises:
        InvalidEventName, InvalidPayload: nothing was published.
        BusUnavailable: Redis can't be reached or can't serve; it is not known to be published.
        BusError: Redis refused it.
    """
    settings = get_settings()
    message = new_message(name, payload)
    fields = encode(message, encode_payload(payload, settings.max_payload_size))
    client = get_client(settings.url, settings.redis_timeout)
    return _fired(message, client.append(stream_key(name, settings.stream_use), fields))


def fire_many(events: Iterable[tuple[str, Mapping[str, Any]]], /) -> list[EventMessage]:
    """Publish events now, in their order and in few round trips; return them with their ids and stream ids.

    Args:
        events: pairs of event name and payload.

    Raises:
        InvalidEventName, InvalidPayload: nothing was published.
        BusUnavailable, BusError: as `fire` does; of the events some may be published.
    """
    settings = get_settings()
    client = get_client(settings.url, settings.redis_timeout)
    messages, entries = [], []
    for name, payload in events:
        message = new_message(name, dict(payload))
        messages.append(message)
        fields = encode(message, encode_payload(payload, settings.max_payload_size))
        entries.append((stream_key(name, settings.stream_use), fields))
    stream_ids: list[str] = []
    for chunk in chunks(entries, _size, count=RELAY_SIZE, size=RELAY_BYTES):
        for result in client.append_many(chunk):
            if isinstance(result, BusError):
                raise result
            stream_ids.append(result)
    return [_fired(message, stream_id) for message, stream_id in zip(messages, stream_ids, strict=True)]


def _size(entry: tuple[str, Fields]) -> int:
    return sum(map(len, entry[1].values()))


def _fired(message: EventMessage, stream_id: str) -> EventMessage:
    return EventMessage(
        id=message.id,
        api_name=message.api_name,
        event_name=message.event_name,
        payload=message.payload,
        stream_id=stream_id,
    )


async def afire(name: str, /, **payload: Any) -> EventMessage:
    """Do what `fire` does, from async code."""
    return await sync_to_async(fire, thread_sensitive=False)(name, **payload)


async def afire_many(events: Iterable[tuple[str, Mapping[str, Any]]], /) -> list[EventMessage]:
    """Do what `fire_many` does, from async code."""
    return await sync_to_async(fire_many, thread_sensitive=False)(events)


class OnCommit:
    """`on_commit(name, /, **payload)`; `on_commit.using(alias)` is the same for another database."""

    def __init__(self, alias: str | None = None) -> None:
        self._alias = alias

    def using(self, alias: str, /) -> "OnCommit":
        """Return an `on_commit` for the transaction of the database `alias`.

        Raises:
            ConfigurationError: the database router does not write OutboxEvent there.
        """
        if not is_written(alias):
            raise ConfigurationError(
                f"The database router does not write OutboxEvent to {alias!r}, so no relay looks there for what was "
                "not published: name another database, or let the router's allow_migrate() and db_for_write() allow "
                "for it, given an instance of that database."
            )
        return OnCommit(alias)

    def __call__(self, name: str, /, **payload: Any) -> EventMessage:
        """Publish an event if and when the transaction at hand commits; return it, with its id.

        A row in the outbox, written in this transaction, makes sure of it: should Redis be away or
        this process die, a relay publishes what is left there. Outside of a transaction the event is
        published at once. The transaction at hand is the open one if one database has one open to which
        OutboxEvent may be written, else that of the database to which it is routed.

        Raises:
            InvalidEventName, InvalidPayload: no row was written; the transaction can go on.
        """
        message = new_message(name, payload)
        stage([message], self._alias or current_database())
        return message


class AsyncOnCommit:
    """`await aon_commit(name, /, **payload)`: what `on_commit` does, from async code."""

    def __init__(self, alias: str | None = None) -> None:
        self._on_commit = OnCommit(alias)

    def using(self, alias: str, /) -> "AsyncOnCommit":
        """Return an `aon_commit` for the transaction of the database `alias`; raises as `OnCommit.using`."""
        on_commit.using(alias)
        return AsyncOnCommit(alias)

    async def __call__(self, name: str, /, **payload: Any) -> EventMessage:
        return await sync_to_async(self._on_commit)(name, **payload)


class OnCommitMany:
    """`on_commit_many(events)`; `on_commit_many.using(alias)` is the same for another database."""

    def __init__(self, alias: str | None = None) -> None:
        self._alias = alias

    def using(self, alias: str, /) -> "OnCommitMany":
        """Return an `on_commit_many` for the transaction of the database `alias`."""
        return OnCommitMany(alias)

    def __call__(self, events: Iterable[tuple[str, Mapping[str, Any]]], /) -> list[EventMessage]:
        """Publish events, in their order, if and when the transaction at hand commits; return them, with their ids.

        It does what `on_commit` does for each, with a few statements for all. Outside of a transaction the rows are
        written in one of their own.

        Args:
            events: pairs of event name and payload.

        Raises:
            InvalidEventName, InvalidPayload: no row was written; the transaction can go on.
        """
        messages = [new_message(name, dict(payload)) for name, payload in events]
        if messages:
            stage(messages, self._alias or current_database())
        return messages


class AsyncOnCommitMany:
    """`await aon_commit_many(events)`: what `on_commit_many` does, from async code."""

    def __init__(self, alias: str | None = None) -> None:
        self._on_commit_many = OnCommitMany(alias)

    def using(self, alias: str, /) -> "AsyncOnCommitMany":
        """Return an `aon_commit_many` for the transaction of the database `alias`."""
        return AsyncOnCommitMany(alias)

    async def __call__(self, events: Iterable[tuple[str, Mapping[str, Any]]], /) -> list[EventMessage]:
        return await sync_to_async(self._on_commit_many)(events)


on_commit = OnCommit()
on_commit_many = OnCommitMany()
aon_commit = AsyncOnCommit()
aon_commit_many = AsyncOnCommitMany()
