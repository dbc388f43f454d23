"""The relay: publishing rows of the outbox that were left behind, or that are to be published again."""

import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from django.db.models import Func, IntegerField

from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import Settings
from lightbus_django.events.chunks import chunks
from lightbus_django.events.codec import Fields, encode
from lightbus_django.events.message import EventMessage
from lightbus_django.events.names import split_name
from lightbus_django.exceptions import BusError, InvalidEventName
from lightbus_django.models import OutboxEvent, OutboxEventQuerySet

from .publisher import GRACE, Staged, publish, put_off, settle

RELAY_SIZE = 1000
"""How many rows are published at a time."""

RELAY_BYTES = 16 * 1024 * 1024
"""How many bytes of payload are published at a time, unless one row alone has more."""

LOOK_BACK = GRACE
"""A row is found at once if its transaction was committed no later than this after the row was due."""

FULL_LOOK_INTERVAL = 10.0
"""Seconds after which a relay looks for rows that were committed even later."""

FULL_LOOK_SHARE = 0.02
"""The share of the time that these looks may take."""

_FIRST = UUID(int=0)

_decode_payload = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Place(NamedTuple):
    """A place in the queue of rows that are due: they are published in this order."""

    due_at: datetime
    id: UUID = _FIRST


class Relay:
    """Publishes what was left behind in the outbox of one database.

    The rows that are due are a queue, of which a relay takes the first ones. It claims the first of all, so that others
    leave the queue alone meanwhile: what one transaction fired stays in order.

    As long as any transaction of the database is older than they are, PostgreSQL keeps the index entries of rows that
    are published, and passes over all of them to get to the first row of the queue. So a relay remembers where that
    was, and looks from there on.
    """

    def __init__(self, using: str, client: RedisClient, settings: Settings) -> None:
        self._outbox = OutboxEvent.objects.using(using)
        self._using = using
        self._client = client
        self._settings = settings
        self._from: Place | None = None
        self._full_look_at = 0.0
        self.is_behind = False
        """Whether there were more rows than it could take at a time."""

    def step(self, now: datetime) -> int:
        """Publish what is due at `now` and was left behind, up to RELAY_SIZE rows; return how many that were.

        Rows that are known to be published are marked before, so that they are not published again.

        Raises:
            BusUnavailable: the rows are as they were.
            BusError: some confirmations can't be read, and nothing is left that is due.
        """
        self.is_behind = False
        rows = self._look(now)
        problems: list[BusError] = []
        names, settled = self._fresh(now), set[str]()
        while new := (names | {name for _, name in rows}) - settled:
            marked, errors = settle(new, self._using, self._client, self._settings)
            settled |= new
            problems += errors
            if marked and rows:
                rows = self._look(now)
        if rows and (count := self._publish([place for place, _ in rows], now)):
            return count
        for problem in problems:
            raise problem
        return 0

    def _look(self, now: datetime) -> list[tuple[Place, str]]:
        """Return place and event name of the first rows of the queue."""
        started = time.monotonic()
        is_full = started >= self._full_look_at
        if is_full:
            self._from = None
        columns = "due_at", "pk", "event_name", _Bytes("payload")
        found = [(Place(row[0], row[1]), *row[2:]) for row in self._queue(now, RELAY_SIZE, *columns)]
        rows = _within_limits(found)
        self.is_behind = len(found) >= RELAY_SIZE or len(rows) < len(found)
        if is_full:
            ended = time.monotonic()
            self._full_look_at = ended + max(FULL_LOOK_INTERVAL, (ended - started) / FULL_LOOK_SHARE)
        self._from = min(place for place in (Place(now - LOOK_BACK), *(row[0] for row in rows[:1])))
        return rows

    def _queue(self, now: datetime, size: int, *columns: Any) -> Iterator[tuple[Any, ...]]:
        """Yield the first `size` rows of the queue from where it is known to begin."""
        due = self._outbox.filter(due_at__lte=now).order_by("due_at", "pk").values_list(*columns)
        parts = [due]
        if self._from:
            # One condition for both would not be understood by all databases as a place in their index.
            parts = [
                due.filter(due_at=self._from.due_at, pk__gte=self._from.id),
                due.filter(due_at__gt=self._from.due_at),
            ]
        for part in parts:
            rows = list(part[:size])
            size -= len(rows)
            yield from rows
            if not size:
                return

    def _fresh(self, now: datetime) -> set[str]:
        """Return names of events that were fired in the last seconds, whose rows wait to be marked."""
        fresh = self._outbox.filter(due_at__gt=now + GRACE / 2).order_by("-due_at")
        return set(fresh.values_list("event_name", flat=True)[:RELAY_SIZE])

    def _publish(self, places: list[Place], now: datetime) -> int:
        """Publish these rows, or the first of them, unless somebody else is at it; return how many they are."""
        head, until = places[0], now + GRACE
        if not self._outbox.filter(pk=head.id, due_at=head.due_at).claim(now, until):
            return 0
        try:
            # Who claims rows looks at the claims of others after that: of two, one at least sees the other's.
            claimed: Any = self._outbox.claimed(now).exclude(pk=head.id).values_list("due_at", "pk")
            anothers = min((Place(*row) for row in claimed), default=None)
            keys = [place.id for place in places if anothers is None or place < anothers]
            rows = self._outbox.filter(pk__in=keys, due_at__lte=now).order_by("due_at", "pk")
            publish(read(rows), self._using, self._client, self._settings)
        finally:
            self._outbox.filter(pk=head.id).release(until)
        return len(keys)


def republish(rows: OutboxEventQuerySet, client: RedisClient, settings: Settings) -> Iterator[int]:
    """Publish again, under their ids, rows that were published; yield how many, some at a time.

    Raises:
        BusUnavailable: the rest was not published.
    """
    last = None
    while True:
        rest = (rows.filter(pk__gt=last) if last else rows).order_by("pk")
        keys = [key for (key,) in _within_limits(rest.values_list("pk", _Bytes("payload"))[:RELAY_SIZE])]
        if not keys:
            return
        last = keys[-1]
        chunk = rows.filter(pk__range=(keys[0], last)).order_by("pk")
        yield publish(read(chunk), rows.db, client, settings)


class _Bytes(Func):
    """The size of a text, which a database knows without reading it. SQLite has but the characters."""

    function = "OCTET_LENGTH"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, function="LENGTH", **context)

    as_oracle = as_sqlite


def _within_limits(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the first rows, without the size that each ends with: RELAY_BYTES at most if they are several."""
    first = next(chunks(rows, itemgetter(-1), count=RELAY_SIZE, size=RELAY_BYTES), [])
    return [row[:-1] for row in first]


def read(rows: OutboxEventQuerySet) -> list[Staged]:
    """Return the events that rows hold, in their order; one that can't be read is put off."""
    events = []
    columns = "pk", "event_name", "published_at", "version", "payload"
    for key, name, published_at, version, payload in rows.values_list(*columns):
        try:
            fields = _fields(key, name, version, payload)
            events.append(Staged(key, name, len(payload), fields, published_at))
        except (InvalidEventName, msgspec.MsgspecError, ValueError) as error:
            put_off(rows.db, key, name, error)
    return events


def _fields(key: UUID, name: str, version: int, payload: str) -> Fields:
    api_name, event_name = split_name(name)
    message = EventMessage(id=str(key), api_name=api_name, event_name=event_name, version=version, payload={})
    return encode(message, {field: bytes(value) for field, value in _decode_payload(payload).items()})
