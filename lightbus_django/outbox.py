"""Events staged with the caller's writes, to be published once these are committed."""

import json
import logging
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID
from weakref import ref

import msgspec
from django.db import Error as DatabaseError
from django.db import connections, router, transaction
from django.utils import timezone

from .conf import get_settings
from .dispatch import GRACE, Staged, publish_with_notes
from .exceptions import BusError, BusUnsupported, InvalidEventName
from .inserts import insert
from .messages import EventMessage, encode, encode_payload
from .models import OutboxEvent, is_written
from .relay import RELAY_SIZE
from .texts import storable
from .transport import get_transport
from .witness import RollbackDetector

logger = logging.getLogger("lightbus_django")

MARGIN = GRACE / 2
"""How long before its rows are due a process does not begin to publish them without making sure."""

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


def stage(message: EventMessage, using: str) -> None:
    """Write the event in the transaction of `using`, to be published once that is committed.

    Without a transaction it is published at once. In one that is managed by hand, with `set_autocommit(False)` and no
    `atomic()`, Django takes no commit hooks: a relay publishes the event.

    Raises:
        InvalidEventName, InvalidPayload: no row was written; the transaction goes on.
    """
    if storable(message.name, OutboxEvent._meta.get_field("event_name"), using) != message.name:
        raise InvalidEventName(
            f"{message.name!r} can't be stored in the database {using!r}: its character set lacks some of it"
        )
    payload = encode_payload(message.payload, get_settings().max_payload_size)
    text = _as_ascii(_encode_payload({key: msgspec.Raw(value) for key, value in payload.items()}).decode())
    connection: Any = connections[using]
    takes_hooks = connection.in_atomic_block or connection.get_autocommit()
    batch = _Batch.at_hand(connection) if takes_hooks else None
    row_id = UUID(message.id)
    now = timezone.now()
    created_at, due_at = map(connection.ops.adapt_datetimefield_value, (now, batch.due_at if batch else now))
    stored_id = row_id if connection.features.has_native_uuid_field else row_id.hex
    row = (stored_id, message.name, message.version, text, created_at, due_at, "")
    with transaction.mark_for_rollback_on_error(using):
        insert(OutboxEvent, using, _COLUMNS, [row])
    if batch:
        batch.add(Staged(row_id, message.name, encode(message, payload)))


class _Hook:
    """The commit hook of one event. Django drops it if the event's savepoint is rolled back."""

    def __init__(self, batch: "_Batch", event: Staged) -> None:
        self.batch = batch
        self.event = event
        self.is_done = False

    def publish(self) -> None:
        if not self.is_done:
            self.batch.publish(self)


def _as_ascii(text: str) -> str:
    """Return JSON that every database can store, whatever its character set."""
    return text if text.isascii() else _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)


class _Batch:
    """The events of one transaction. After the commit, the first of their hooks publishes all of them."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.due_at = timezone.now() + GRACE
        self.hooks: list[ref[_Hook]] = []
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

    def add(self, event: Staged) -> None:
        self.detector.check()
        hook = _Hook(self, event)
        self.hooks.append(ref(hook))
        self.connection.on_commit(hook.publish, robust=True)

    def publish(self, hook: _Hook) -> None:
        """Publish the event of `hook`, and after the commit with it the others of the transaction.

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
        settings = get_settings()
        transport = get_transport(settings.url, settings.redis_timeout)
        if not transport.is_worth_trying():
            logger.debug("outbox: %d events wait for the relay: Redis at %s is down", len(hooks), transport)
            return
        in_doubt = self.observation.in_doubt or not (is_open or self.observation.is_committed)
        staged = [each.event for each in hooks]
        try:
            for first in range(0, len(staged), RELAY_SIZE):
                events = self._ours(staged[first : first + RELAY_SIZE], timezone.now(), in_doubt=in_doubt)
                publish_with_notes(events, self.connection.alias, transport, settings)
        except (BusError, DatabaseError) as error:
            level = logging.ERROR if isinstance(error, BusUnsupported) else logging.WARNING
            logger.log(level, "outbox: %d events wait for the relay: %s", len(staged), error)

    def _ours(self, events: Sequence[Staged], now: datetime, *, in_doubt: bool) -> Sequence[Staged]:
        """Return the events whose rows are there, and not taken by a relay.

        Rows are missing if they were rolled back though the hook runs. And where the transaction took long, the rows
        are due, or soon will be.
        """
        is_late = now > self.due_at - MARGIN
        if not self.in_transaction or not (is_late or in_doubt):
            return events
        rows = OutboxEvent.objects.using(self.connection.alias).filter(pk__in=[event.id for event in events])
        if is_late:
            due_at = now + GRACE
            rows.filter(due_at=self.due_at).update(due_at=due_at)
            rows = rows.filter(due_at=due_at)
        ours = set(rows.values_list("pk", flat=True))
        return [event for event in events if event.id in ours]
