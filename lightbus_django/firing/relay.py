"""The relay: publishes events that were left in the outbox, or that are to be published again."""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import Settings
from lightbus_django.exceptions import BusError, BusUnavailable, NodeUnavailable
from lightbus_django.models import Claim, OutboxEvent, OutboxEventQuerySet, QueuePosition

from .publisher import GRACE, POSTPONEMENT, mark_confirmed, publish_and_mark
from .rows import PIPELINE_SIZE, PayloadSize, first_pipeline, read_rows

RELAY_SIZE = PIPELINE_SIZE
"""The maximum number of events that are read and published at a time."""

LOOK_BACK = GRACE
"""Events committed up to this long after they were due are found by the next step; later ones by a full look."""

FULL_LOOK_INTERVAL = 10.0
"""Seconds between two looks for events that were committed even later."""

FULL_LOOK_SHARE = 0.02
"""The maximum share of the relay's time that these looks take."""


class Relay:
    """Publishes what was left in the outbox of one database.

    Due events form a queue, and a relay takes the first ones. It claims only the very first: other relays then leave
    the whole queue alone, so the events of a transaction stay in order.

    While any older transaction is open, PostgreSQL keeps the index entries of published rows, and reads past all of
    them to find the head of the queue. So a relay remembers where the head was, and starts from there.
    """

    def __init__(self, using: str, client: RedisClient, settings: Settings) -> None:
        self._outbox = OutboxEvent.objects.using(using)
        self._using = using
        self._client = client
        self._settings = settings
        self._head: QueuePosition | None = None
        self._full_look_at = 0.0
        self._unreachable: tuple[BusUnavailable, datetime] | None = None
        """Why some events were postponed, and until when."""
        self.is_behind = False
        """Whether there were more events than it takes at a time."""

    def step(self, now: datetime) -> int:
        """Publish up to RELAY_SIZE events that are due; return how many there were.

        Confirmed events are marked first, so that they are not published again.

        Raises:
            BusUnavailable: Redis can't be reached. Rows that were not published are unchanged.
            BusError: some confirmations can't be read, and nothing else is due.
        """
        self.is_behind = False
        errors: dict[str, BusError] = {}
        names, done = self._waiting_names(now), set[str]()
        count, postponed = 0, 1
        while postponed and not count:  # others may be behind them
            queue = self._look(now)
            while new := (names | {name for _, name in queue}) - done:
                marked, new_errors = mark_confirmed(new, self._using, self._client, self._settings)
                done |= new
                errors |= new_errors
                if marked and queue:
                    queue = self._look(now)
            unknown = {name: error for name, error in errors.items() if isinstance(error, NodeUnavailable)}
            count, postponed = self._publish(queue, unknown, now) if queue else (0, 0)
        if count:
            return count
        for error in errors.values():
            raise error
        if self._unreachable and now < self._unreachable[1]:
            raise self._unreachable[0]
        return 0

    def _look(self, now: datetime) -> list[tuple[QueuePosition, str]]:
        """Return the positions and names of the first events in the queue."""
        started = time.monotonic()
        is_full = started >= self._full_look_at
        if is_full:
            self._head = None
        columns = "due_at", "pk", "event_name", PayloadSize("payload")
        found = [(QueuePosition(row[0], row[1]), *row[2:]) for row in self._queue(now, RELAY_SIZE, *columns)]
        queue = first_pipeline(found)
        self.is_behind = len(found) >= RELAY_SIZE or len(queue) < len(found)
        if is_full:
            ended = time.monotonic()
            self._full_look_at = ended + max(FULL_LOOK_INTERVAL, (ended - started) / FULL_LOOK_SHARE)
        self._head = min(position for position in (QueuePosition(now - LOOK_BACK), *(row[0] for row in queue[:1])))
        return queue

    def _queue(self, now: datetime, size: int, *columns: Any) -> Iterator[tuple[Any, ...]]:
        """Yield the first `size` rows of the queue, from its known head on."""
        due = self._outbox.due(now)
        for part in due.starting_at(self._head) if self._head else [due]:
            rows = list(part.values_list(*columns)[:size])
            size -= len(rows)
            yield from rows
            if not size:
                return

    def _waiting_names(self, now: datetime) -> set[str]:
        """Return the names of events fired in the last seconds, whose rows may be confirmed."""
        waiting = self._outbox.waiting(until=now + GRACE / 2).order_by("-due_at")
        return set(waiting.values_list("event_name", flat=True)[:RELAY_SIZE])

    def _publish(
        self, queue: Sequence[tuple[QueuePosition, str]], unknown: Mapping[str, NodeUnavailable], now: datetime
    ) -> tuple[int, int]:
        """Publish the first events of the queue, up to one that another process has claimed.

        Args:
            unknown: names of events that may be published already, each with the reason. Those are postponed.

        Returns how many were published or refused, and how many are postponed.
        """
        head, claim = queue[0][0], Claim(now + GRACE)
        if not self._outbox.at(head).claim(now, claim):
            return 0, 0
        try:
            # Every process looks for other claims only after its own claim, so of two, at least one sees the other.
            others: Any = self._outbox.claimed(now).exclude(pk=head.id).values_list("due_at", "pk")
            first_other = min((QueuePosition(*row) for row in others), default=None)
            ours = [each for each in queue if first_other is None or each[0] < first_other]
            ids = [position.id for position, name in ours if name not in unknown]
            rows = read_rows(self._outbox.filter(pk__in=ids).due(now))
            _, unreachable = publish_and_mark(rows, self._using, self._client, self._settings)
            rest = {position.id: unknown[name] for position, name in ours if name in unknown}
            self._outbox.filter(pk__in=rest).postpone(now + POSTPONEMENT)
        finally:
            self._outbox.filter(pk=head.id).release(claim)
        problems = [*unreachable, *rest.values()]
        if problems:  # these events are due again later, and hold up no others
            self._unreachable = problems[0], now + POSTPONEMENT
        return len(ours) - len(problems), len(problems)


def republish(events: OutboxEventQuerySet, client: RedisClient, settings: Settings) -> Iterator[int]:
    """Publish published events again, under their ids, in several steps; yield how many with each step.

    Raises:
        BusUnavailable: Redis can't be reached. The remaining events were not published again.
            In a cluster this is raised at the end, if only some nodes are down or full.
    """
    last = None
    problems: list[BusUnavailable] = []
    while True:
        rest = (events.filter(pk__gt=last) if last else events).order_by("pk")
        ids = [row_id for (row_id,) in first_pipeline(rest.values_list("pk", PayloadSize("payload"))[:PIPELINE_SIZE])]
        if not ids:
            break
        last = ids[-1]
        chunk = events.filter(pk__range=(ids[0], last)).order_by("pk")
        count, unreachable = publish_and_mark(read_rows(chunk), events.db, client, settings)
        yield count
        problems += unreachable
    for problem in problems:
        raise problem
