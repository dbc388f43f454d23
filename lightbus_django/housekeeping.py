"""Everything periodic but the renewal of leases: relay, due retries, trimming, pruning, consumers long gone."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from django.db import Error as DatabaseError
from django.db import connections
from django.utils import timezone

from . import stale_groups, streams
from .abandoned import find_abandoned
from .conf import Settings
from .consumer import Consumer
from .database import close_broken, transient_errors
from .exceptions import BusUnavailable, GroupMissing, LightbusError
from .listeners import registry
from .messages import is_name, stream_key
from .models import FailedEvent, OutboxEvent, has_outbox
from .outages import Outage
from .pruning import cutoffs_at, prune
from .relay import Relay
from .stale_groups import StaleGroups
from .transport import Transport

logger = logging.getLogger("lightbus_django")

Item = TypeVar("Item")
Result = TypeVar("Result")

AFTER_FAILURE = 5.0
"""Seconds until a job that failed runs again."""

SAY_INTERVAL = 5.0
"""Seconds between two lines in the log about what was relayed."""

TRIM_SIZE = 10_000
"""How many entries are trimmed at a time; it takes Redis some milliseconds."""

SAMPLE = 1000
"""Latest rows of the outbox that tell to which streams this service fires."""


@dataclass
class _Job:
    run: Callable[[], bool]
    interval: float
    at_once: Callable[[], bool] = lambda: False  # whether to run again at once while there is something to do
    due_at: float = 0.0


class Housekeeping:
    """What one thread of a worker does beside its consumers."""

    def __init__(
        self, consumers: Sequence[Consumer], *, service_name: str, settings: Settings, transport: Transport
    ) -> None:
        self.consumers = consumers
        self.service_name = service_name
        self.settings = settings
        self.transport = transport
        self._jobs = [
            # What comes in one by one is collected for a second.
            _Job(self.relay, 1.0, at_once=lambda: any(relay.is_behind for relay in self._relays.values())),
            _Job(self.flag_due_retries, 1.0),
            _Job(self.trim, 60.0, at_once=lambda: True),
            _Job(self.prune, 3600.0, at_once=lambda: True),
            _Job(self.tidy_consumers, 3600.0),
            _Job(self.report_stale_groups, stale_groups.INTERVAL),
            _Job(self.report_ids_ahead, 6 * 3600.0),
            _Job(self.report_abandoned_retries, 6 * 3600.0),
        ]
        self._stale_groups = StaleGroups(transport, stale_after=settings.group_stale_after)
        self.outages = {job.run: Outage(job.run.__name__, transport) for job in self._jobs}
        self._has_outbox: dict[str, bool] = {}
        self._relays: dict[str, Relay] = {}
        self._relayed = 0
        self._say_relayed_at = 0.0
        self._pruning: list[Iterator[tuple[str, int]]] = []
        self._pruned: Counter[str] = Counter()

    def step(self, now: float | None = None) -> bool:
        """Run what is due at `now`, seconds on the monotonic clock; return whether there was something to do.

        A job that fails does not keep the others from running.
        """
        if now is None:
            now = time.monotonic()
        busy = False
        for job in self._jobs:
            if now < job.due_at:
                continue
            job.due_at = now + job.interval
            try:
                something_done = job.run()
            except (LightbusError, DatabaseError) as error:
                close_broken()
                job.due_at = now + AFTER_FAILURE
                self.outages[job.run].failed(error)
                continue
            self.outages[job.run].ended()
            if something_done:
                busy = True
                job.due_at = now if job.at_once() else job.due_at
        return busy

    # --- What is left or due ------------------------------------------------------------------

    def relay(self) -> bool:
        """Mark what is published, and publish what was left in the outboxes."""

        def relay_from(alias: str) -> int:
            if alias not in self._relays:
                self._relays[alias] = Relay(alias, self.transport, self.settings)
            with transient_errors(alias):
                return self._relays[alias].step(timezone.now())

        count = sum(_each(self._outboxes(), relay_from))
        self._relayed += count
        if self._relayed and time.monotonic() >= self._say_relayed_at:
            logger.info("relay: %d events that had been left in the outbox", self._relayed)
            self._relayed, self._say_relayed_at = 0, time.monotonic() + SAY_INTERVAL
        return bool(count)

    def _outboxes(self) -> Iterator[str]:
        """Yield the aliases of the databases that have an outbox; raises with the one that does not answer."""
        return filter(self._has_an_outbox, connections)

    def _has_an_outbox(self, alias: str) -> bool:
        if not self._has_outbox.get(alias):
            with transient_errors(alias):
                self._has_outbox[alias] = has_outbox(alias)
        return self._has_outbox[alias]

    def flag_due_retries(self) -> bool:
        """Tell the consumers that have retries due; each makes them in its own thread."""

        def flag(alias: str) -> bool:
            with transient_errors(alias):
                consumers = {
                    consumer.inbox.keys.stored_group: consumer
                    for consumer in self.consumers
                    if consumer.inbox.using == alias
                }
                names = FailedEvent.objects.using(alias).groups_due(consumers, timezone.now())
            for name in names:
                consumers[name].retries_due.set()
            return bool(names)

        return any(_each({consumer.inbox.using for consumer in self.consumers}, flag))

    # --- What is no longer needed -------------------------------------------------------------

    def trim(self) -> bool:
        """Trim our streams of what every group has finished with, beyond what is to be kept anyway."""
        keep_since = datetime.now(UTC) - timedelta(seconds=self.settings.stream_retention)

        def trim(stream: str) -> int:
            return streams.trim(
                self.transport,
                stream,
                awaited=self._groups_of(stream),
                keep_since=keep_since,
                keep_length=self.settings.stream_min_length,
                limit=TRIM_SIZE,
            )

        return any(_each(self._streams(), trim))

    def prune(self) -> bool:
        """Delete some old rows; return whether there may be more."""
        if not self._pruning:
            cutoffs = cutoffs_at(datetime.now(UTC), self.settings, self.transport)
            self._pruning = [prune(alias, cutoffs) for alias in self._outboxes()]
            self._pruned.clear()
        pruner = self._pruning.pop()
        for what, count in pruner:
            self._pruned[what] += count
            self._pruning.append(pruner)
            return True
        if self._pruning:
            return True
        if total := +self._pruned:
            logger.info("pruned %s", ", ".join(f"{count} {what}" for what, count in total.items()))
        return False

    def tidy_consumers(self) -> bool:
        """Delete consumers of our groups that have nothing pending and were idle for CONSUMER_TTL."""

        def tidy(consumer: Consumer) -> None:
            for stream in consumer.streams:
                with suppress(GroupMissing):  # its consumer is about to create it
                    count = streams.tidy_consumers(
                        self.transport, stream, consumer.group, idle=self.settings.consumer_ttl
                    )
                    if count:
                        logger.info("%s: deleted %d consumers that are long gone", consumer.group, count)

        _each(self.consumers, tidy)
        return False

    def report_stale_groups(self) -> bool:
        """Warn of groups that nobody reads, and that keep events from being trimmed, and of events that ours left."""
        _each(self.consumers, lambda consumer: consumer.positions.report_stranded())
        missing = _each(self._streams(), lambda stream: self._stale_groups.look_at(stream, self._groups_of(stream)))
        self._stale_groups.report_missing(set().union(*missing))
        return False

    def report_abandoned_retries(self) -> bool:
        """Warn of retries that nobody makes: of groups of this service that have no listener any more."""

        def report(alias: str) -> None:
            for found in find_abandoned(alias, self.service_name):
                if found.retrying and found.is_ours:
                    logger.warning(
                        "%s: %d failed events in the database %r are not retried: no listener of this service has this "
                        "group any more. To make them dead letters: manage.py lightbus_retire %s",
                        found.group,
                        found.retrying,
                        alias,
                        found.group,
                    )

        _each(self._outboxes(), report)
        return False

    def report_ids_ahead(self) -> bool:
        """Warn of streams whose ids are ahead of the time."""

        def report(stream: str) -> None:
            if (stream_id := streams.first_ahead(self.transport, stream)) is not None:
                text = (
                    "%s: the stream id %s is ahead of the time, so those that follow are, too; such events are trimmed "
                    "as soon as all groups have acknowledged them, whatever their age"
                )
                logger.warning(text, stream, stream_id)

        _each(self._streams(), report)
        return False

    def _groups_of(self, stream: str) -> list[str]:
        """Return the groups that the service's listeners have in this stream, or will have."""
        return [
            listener.group(self.service_name)
            for listener in registry
            if stream in {stream_key(event, self.settings.stream_use) for event in listener.events}
        ]

    def _streams(self) -> list[str]:
        """Return the streams that this service listens to, and those to which its outboxes fired lately."""
        events = {event for listener in registry for event in listener.events}
        for alias in self._outboxes():
            latest = OutboxEvent.objects.using(alias).order_by("-pk")
            with transient_errors(alias):
                events.update(filter(is_name, latest.values_list("event_name", flat=True)[:SAMPLE]))
        return sorted({stream_key(event, self.settings.stream_use) for event in events})


def _each(items: Iterable[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Return what `work` makes of each; one that fails keeps no other from its turn, and is told of in the end."""
    results = []
    problem: Exception | None = None
    iterator = iter(items)
    while True:
        try:
            results.append(work(next(iterator)))
        except StopIteration:
            break
        except BusUnavailable:
            raise  # nor would the others get an answer
        except (LightbusError, DatabaseError) as error:
            close_broken()
            problem = error
    if problem is not None:
        raise problem
    return results
