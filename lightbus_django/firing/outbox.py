"""Events staged with the caller's writes, to be published once these are committed."""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID
from weakref import ref

import msgspec
from django.db import Error as DatabaseError
from django.db import connections, router, transaction
from django.utils import timezone

from lightbus_django.bus.client import RedisClient, get_client
from lightbus_django.conf import get_settings
from lightbus_django.database.bulk_insert import insert
from lightbus_django.database.rollback_detector import RollbackDetector
from lightbus_django.database.text import storable
from lightbus_django.events.chunks import chunks
from lightbus_django.events.codec import encode, encode_payload
from lightbus_django.events.message import EventMessage
from lightbus_django.events.times import as_stored, uuid_time
from lightbus_django.exceptions import BusError, BusUnsupported, InvalidEventName
from lightbus_django.models import OutboxEvent, is_written

from .publisher import GRACE, Staged, publish_confirmed
from .relay import RELAY_BYTES, RELAY_SIZE, read

logger = logging.getLogger("lightbus_django")

MARGIN = GRACE / 2
"""How long before its rows are due a process does not begin to publish them without making sure."""

INSERT_SIZE = 1000
INSERT_BYTES = 1024 * 1024
"""How many events, and bytes of payload, are written with one statement, unless one event alone has more."""

_COLUMNS = ("id", "event_name", "version", "payload", "created_at", "due_at", "error")

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_encode_payload = msgspec.json.Encoder().encode


def current_database() -> str:
    """Return the alias of the transaction at hand: the one that is open, else where OutboxEvent is written.

    Transactions of databases where it is not written, such as replicas, don't count.
    """
    in_transaction = [
        connection.alias
        for connection in connections.all(initialized_only=True)
        if connection.in_atomic_block and is_written(connection.alias)
    ]
    return in_transaction[0] if len(in_transaction) == 1 else router.db_for_write(OutboxEvent)


def stage(messages: Sequence[EventMessage], using: str) -> None:
    """Write the events in the transaction of `using`, to be published once that is committed.

    Without a transaction they are published at once. In one that is managed by hand, with `set_autocommit(False)` and
    no `atomic()`, Django takes no commit hooks: a relay publishes them.

    Raises:
        InvalidEventName, InvalidPayload: no row was written; the transaction goes on.
    """
    max_size = get_settings().max_payload_size
    for message in messages:
        if storable(message.name, OutboxEvent._meta.get_field("event_name"), using) != message.name:
            raise InvalidEventName(
                f"{message.name!r} can't be stored in the database {using!r}: its character set lacks some of it"
            )
    payloads = [encode_payload(message.payload, max_size) for message in messages]
    connection: Any = connections[using]
    takes_hooks = connection.in_atomic_block or connection.get_autocommit()
    # Several statements have to be one transaction; a single one is.
    together = transaction.atomic(using, savepoint=False) if takes_hooks and len(messages) > 1 else nullcontext()
    with together, transaction.mark_for_rollback_on_error(using):
        batch = _Batch.at_hand(connection) if takes_hooks else None
        due_at = batch.due_at if batch else timezone.now()
        rows = (_row(*event, connection, due_at) for event in zip(messages, payloads, strict=True))
        for some in chunks(rows, lambda row: len(row[3]), count=INSERT_SIZE, size=INSERT_BYTES):
            insert(OutboxEvent, using, _COLUMNS, some)
        if batch:
            batch.add(_staged(*event) for event in zip(messages, payloads, strict=True))


def _row(message: EventMessage, payload: Mapping[str, bytes], connection: Any, due_at: datetime) -> tuple[Any, ...]:
    text = _as_ascii(_encode_payload({key: msgspec.Raw(value) for key, value in payload.items()}).decode())
    row_id = UUID(message.id)
    # The time in the id, from which its publication is reckoned.
    times = map(connection.ops.adapt_datetimefield_value, (as_stored(uuid_time(row_id)), due_at))
    stored_id = row_id if connection.features.has_native_uuid_field else row_id.hex
    return (stored_id, message.name, message.version, text, *times, "")


def _staged(message: EventMessage, payload: Mapping[str, bytes]) -> Staged:
    size = sum(map(len, payload.values()))
    return Staged(UUID(message.id), message.name, size, encode(message, payload))


def _as_ascii(text: str) -> str:
    """Return JSON that every database can store, whatever its character set."""
    return text if text.isascii() else _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _client() -> RedisClient:
    settings = get_settings()
    return get_client(settings.url, settings.redis_timeout)


class _Hook:
    """The commit hook of the events of one call. Django drops it if their savepoint is rolled back."""

    def __init__(self, batch: "_Batch", events: list[Staged]) -> None:
        self.batch = batch
        self.events = events
        self.is_done = False

    def publish(self) -> None:
        if not self.is_done:
            self.batch.publish(self)


class _Batch:
    """The events of one transaction. After the commit, the first of their hooks publishes all of them."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        # While Redis is down nobody will publish them but a relay: it may do so as soon as Redis is back.
        self.due_at = timezone.now() + (timedelta() if _client().is_down else GRACE)
        self.hooks: list[ref[_Hook]] = []
        self.size = 0
        self.claims: list[datetime] = []
        self.in_transaction = connection.in_atomic_block
        self.detector = RollbackDetector.of(connection)
        self.observation = self.detector.observe()

    @classmethod
    def at_hand(cls, connection: Any) -> "_Batch":
        """Return the batch of the open transaction, or a new one."""
        if connection.in_atomic_block:
            for _, hook, _ in reversed(connection.run_on_commit):
                owner = getattr(hook, "__self__", None)
                if isinstance(owner, _Hook):
                    return owner.batch
        return cls(connection)

    def add(self, events: Iterable[Staged]) -> None:
        """Add the events of one call."""
        self.detector.check()
        hook = _Hook(self, [self._limited(event) for event in events])
        self.hooks.append(ref(hook))
        self.connection.on_commit(hook.publish, robust=True)

    def _limited(self, event: Staged) -> Staged:
        """Return the event without its fields if there are too many to keep; they are read when it is their turn."""
        self.size += event.size
        return event._replace(fields={}) if self.size > RELAY_BYTES else event

    def publish(self, hook: _Hook) -> None:
        """Publish the events of `hook`, and after the commit with them the others of the transaction.

        In an open transaction it is a test that runs hooks (`captureOnCommitCallbacks`): those that it chooses.
        """
        waiting = {id(getattr(callback, "__self__", None)) for _, callback, _ in self.connection.run_on_commit}
        is_open = id(hook) in waiting
        if is_open:
            self.detector.check()
            hooks = [hook]
        else:
            left = (each() for each in self.hooks)
            hooks = [each for each in left if each and not each.is_done and id(each) not in waiting]
        for each in hooks:
            each.is_done = True
        in_doubt = self.observation.in_doubt or not (is_open or self.observation.is_committed)
        self._publish([event for each in hooks for event in each.events], in_doubt=in_doubt)

    def _publish(self, events: Sequence[Staged], *, in_doubt: bool) -> None:
        settings, client, left = get_settings(), _client(), len(events)
        if not client.take_turn():
            logger.debug("outbox: %d events wait for the relay: Redis at %s is down", left, client)
            return
        try:
            if client.is_down:
                client.send([(b"PING",)])  # any answer will do
            for chunk in chunks(events, attrgetter("size"), count=RELAY_SIZE, size=RELAY_BYTES):
                ours = self._complete(self._ours(chunk, timezone.now(), in_doubt=in_doubt))
                publish_confirmed(ours, self.connection.alias, client, settings)
                left -= len(chunk)
        except (BusError, DatabaseError) as error:
            level = logging.ERROR if isinstance(error, BusUnsupported) else logging.WARNING
            logger.log(level, "outbox: %d events wait for the relay: %s", left, error)

    def _complete(self, events: Sequence[Staged]) -> Sequence[Staged]:
        """Return the events with their fields. Those that are not kept here are read, unless their rows are gone."""
        missing = [event.id for event in events if not event.fields]
        if not missing:
            return events
        found = {
            event.id: event for event in read(OutboxEvent.objects.using(self.connection.alias).filter(pk__in=missing))
        }
        return [found.get(event.id, event) for event in events if event.fields or event.id in found]

    def _ours(self, events: Sequence[Staged], now: datetime, *, in_doubt: bool) -> Sequence[Staged]:
        """Return the events whose rows are there, and not taken by a relay.

        Rows are missing if they were rolled back though the hook runs. And where the transaction took long, the rows
        are due, or soon will be.
        """
        is_late = now > self.due_at - MARGIN
        if not is_late and not (in_doubt and self.in_transaction):
            return events
        outbox = OutboxEvent.objects.using(self.connection.alias)
        rows = outbox.filter(pk__in=[event.id for event in events])
        if is_late:
            until = now + GRACE
            rows.claim(now, until)
            # Any other claim may be that of a relay, which publishes more than the row it has claimed.
            self.claims.append(until)
            if outbox.claimed(now).exclude(claimed_until__in=self.claims).exists():
                rows.release(until)
            rows = rows.filter(claimed_until=until)
        ours = set(rows.values_list("pk", flat=True))
        return [event for event in events if event.id in ours]
