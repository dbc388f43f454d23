"""`fire` and `on_commit`: how an event gets on its way."""

from typing import Any

from asgiref.sync import sync_to_async

from .conf import get_settings
from .messages import EventMessage, encode, encode_payload, new_message, stream_key
from .outbox import current_database, stage
from .transport import get_transport


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
    transport = get_transport(settings.url, settings.redis_timeout)
    stream_id = transport.publish(stream_key(name, settings.stream_use), fields)
    return EventMessage(
        id=message.id, api_name=message.api_name, event_name=message.event_name, payload=payload, stream_id=stream_id
    )


async def afire(name: str, /, **payload: Any) -> EventMessage:
    """Do what `fire` does, from async code."""
    return await sync_to_async(fire, thread_sensitive=False)(name, **payload)


class OnCommit:
    """`on_commit(name, /, **payload)`; `on_commit.using(alias)` is the same for another database."""

    def __init__(self, alias: str | None = None) -> None:
        self._alias = alias

    def using(self, alias: str, /) -> "OnCommit":
        """Return an `on_commit` for the transaction of the database `alias`."""
        return OnCommit(alias)

    def __call__(self, name: str, /, **payload: Any) -> EventMessage:
        """Publish an event if and when the transaction at hand commits; return it, with its id.

        A row in the outbox, written in this transaction, makes sure of it: should Redis be away or
        this process die, a relay publishes what is left there. Outside of a transaction the event is
        published at once. The transaction at hand is the open one if one database has one open, else
        that of the database to which OutboxEvent is routed.

        Raises:
            InvalidEventName, InvalidPayload: no row was written; the transaction can go on.
        """
        message = new_message(name, payload)
        stage(message, self._alias or current_database())
        return message


class AsyncOnCommit:
    """`await aon_commit(name, /, **payload)`: what `on_commit` does, from async code."""

    def __init__(self, alias: str | None = None) -> None:
        self._on_commit = OnCommit(alias)

    def using(self, alias: str, /) -> "AsyncOnCommit":
        """Return an `aon_commit` for the transaction of the database `alias`."""
        return AsyncOnCommit(alias)

    async def __call__(self, name: str, /, **payload: Any) -> EventMessage:
        return await sync_to_async(self._on_commit)(name, **payload)


on_commit = OnCommit()
aon_commit = AsyncOnCommit()
