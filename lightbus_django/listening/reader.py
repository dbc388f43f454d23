"""What a consumer reads from its streams, and acknowledges on the way: both go to Redis in one round trip."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.bus.group_reads import Entry

from .in_flight import InFlight

logger = logging.getLogger("lightbus_django")

FIRST_COUNT = 10
"""How many entries the first read asks for, while their size is unknown."""

SAMPLE = 10
"""How many entries of a read are looked at to estimate the size of all."""

READ_BYTES = 4 * 1024 * 1024
"""How many bytes of content a read should return, estimated from the entries read before."""


class StreamReader:
    """One consumer's reads. Each of them first acknowledges what is settled."""

    def __init__(
        self, group_consumer: GroupConsumer, streams: Sequence[str], in_flight: InFlight, *, count: int, timeout: float
    ) -> None:
        """Make the reads of a consumer.

        Args:
            count: how many entries of each stream to read at a time, if they are small.
            timeout: seconds after which a consumer may reclaim what another one holds.
        """
        self.group_consumer = group_consumer
        self.streams = streams
        self.in_flight = in_flight
        self.count = min(count, FIRST_COUNT)
        """How many entries of each stream the next read asks for."""
        self.max_count = count
        self.timeout = timeout
        self.read_at: float | None = None
        """When Redis last answered a read of new events, on the monotonic clock."""

    def flush(self) -> None:
        """Acknowledge what is settled now, without reading."""
        if settled := self._to_acknowledge():
            self.group_consumer.acknowledge(settled)
            self.in_flight.acknowledged(but=self.group_consumer.unreachable)

    def read(self, block: float, young: Sequence[str] = ()) -> list[Entry]:
        """Return new entries; wait up to `block` seconds for the first one. `young` is as for `GroupConsumer.read`."""
        group = self.group_consumer
        entries = group.read(
            group.reachable(self.streams),
            count=self.count,
            block=block,
            acknowledge=self._to_acknowledge(),
            young=young,
        )
        self.read_at = time.monotonic()
        # If there is no answer, Redis may not have got the acknowledgements: then they are sent again.
        self.in_flight.acknowledged(but=[*group.unreachable, *group.unanswered])
        self._adapt(entries)
        return entries

    def own_pending(self) -> list[Entry]:
        """Return the oldest entries that are pending for this consumer, except for those it has in flight."""
        known = {(delivery.entry.stream, delivery.entry.stream_id) for delivery in self.in_flight.leased}
        count = self.count + len(known)
        entries = self._claim(lambda stream: self.group_consumer.claim_own(stream, count))
        return [entry for entry in entries if (entry.stream, entry.stream_id) not in known]

    def reclaim(self) -> list[Entry]:
        """Return entries that other consumers have held for longer than the timeout, a batch of each stream."""
        entries = self._claim(lambda stream: self.group_consumer.reclaim(stream, idle=self.timeout, count=self.count))
        if entries:
            logger.info(
                "%s: reclaimed %d events from processes that exceeded the timeout of %g s",
                self.group_consumer.group,
                len(entries),
                self.timeout,
            )
        return entries

    def _to_acknowledge(self) -> Mapping[str, Sequence[str]]:
        unreachable = self.group_consumer.unreachable
        if not unreachable:
            return self.in_flight.settled
        return {stream: ids for stream, ids in self.in_flight.settled.items() if stream not in unreachable}

    def _claim(self, claim: Callable[[str], list[Entry]]) -> list[Entry]:
        self.flush()
        entries = [entry for stream in self.group_consumer.reachable(self.streams) for entry in claim(stream)]
        self._adapt(entries)
        return entries

    def _adapt(self, entries: Sequence[Entry]) -> None:
        """Let the next read ask for as many entries as fit in READ_BYTES, if they are as large as a sample of these.

        Redis can't limit a read by bytes. After a full read the count only doubles, so that a few small entries among
        large ones don't make the next read too large.
        """
        sample = entries[:: 1 + len(entries) // SAMPLE]
        size = sum(len(value) for entry in sample for value in entry.fields.values())
        if len(entries) >= self.count:
            self.count = min(2 * self.count, self.max_count)
        if size:
            self.count = max(1, min(self.count, READ_BYTES * len(sample) // (size * len(self.streams))))
