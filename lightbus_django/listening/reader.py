"""What one consumer is done with, and what is for it to handle: both go to Redis in one round trip."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

from lightbus_django.bus.consumer_group import Entry, GroupConsumer
from lightbus_django.exceptions import GroupMissing

logger = logging.getLogger("lightbus_django")


FIRST_COUNT = 10
"""How many entries the first read asks for, of which nobody knows yet how large they are."""

SAMPLE = 10
"""How many entries of a read tell about how large they are."""

READ_BYTES = 4 * 1024 * 1024
"""How many bytes of content the entries of a read may have, as far as those before tell."""


class StreamReader:
    """One consumer's reads. What comes next can be asked for while what came before is still being handled."""

    def __init__(self, group_consumer: GroupConsumer, streams: Sequence[str], *, count: int, timeout: float) -> None:
        """Make the reads of `group_consumer`.

        Args:
            count: how many entries of each stream to read at a time, if they are small.
            timeout: seconds after which others take what a consumer was given.
        """
        self.group_consumer = group_consumer
        self.streams = streams
        self.count = min(count, FIRST_COUNT)
        """How many entries of each stream the next read asks for."""
        self.max_count = count
        self.timeout = timeout
        self._settled: defaultdict[str, list[str]] = defaultdict(list)
        self._sent: defaultdict[str, list[str]] = defaultdict(list)
        self._asked_at: float | None = None
        self._asked_for = 0

    @property
    def is_asked(self) -> bool:
        """Whether Redis was asked for entries that nobody has received yet."""
        return self._asked_at is not None

    def is_full(self, entries: Sequence[Entry]) -> bool:
        """Whether what was read last is as much as was asked for."""
        return len(entries) >= self._asked_for

    def settle(self, entry: Entry) -> None:
        """Let an entry be acknowledged with the next read."""
        self._settled[entry.stream].append(entry.stream_id)

    def flush(self) -> None:
        """Acknowledge what is settled now."""
        if self._settled:
            self.group_consumer.acknowledge(self._settled)
            self._settled.clear()

    def read(self, block: float) -> list[Entry]:
        """Acknowledge what is settled, and return what is new; waits up to `block` seconds for it."""
        self.ask(block)
        return self._receive()

    def look_back(self, in_hand: Collection[tuple[str, str]]) -> list[Entry]:
        """Acknowledge what is settled, and return what was delivered before, oldest first, less what is in hand."""
        count = self.count + len(in_hand)
        entries = self._claim(lambda stream: self.group_consumer.claim_own(stream, count))
        return [entry for entry in entries if (entry.stream, entry.stream_id) not in in_hand]

    def reclaim(self) -> list[Entry]:
        """Acknowledge what is settled, and return what exceeds the timeout elsewhere, a batch of each stream."""
        entries = self._claim(lambda stream: self.group_consumer.reclaim(stream, idle=self.timeout, count=self.count))
        if entries:
            group, count = self.group_consumer.group, len(entries)
            logger.info("%s: reclaimed %d events from processes that exceeded the timeout", group, count)
        return entries

    def count_delivery(self, entry: Entry) -> None:
        """Acknowledge what is settled, and count a delivery of what was delivered before."""
        if self.is_asked:  # the answer to that comes first, and tells of a group that is missing
            with suppress(GroupMissing):
                self.group_consumer.release(entry.stream, [entry.stream_id], idle=0, deliveries=entry.deliveries)
            return
        self.group_consumer.count_delivery(entry, acknowledge=self._settled)
        self._send_settled()

    def ask(self, block: float = 0.0) -> None:
        """Acknowledge what is settled and ask for what is new, which `receive` returns."""
        self._send_settled()
        self._asked_at, self._asked_for = time.monotonic(), self.count
        with self._taking_back():
            self.group_consumer.start_read(self.streams, count=self.count, block=block, acknowledge=self._sent)

    def give_up(self) -> None:
        """Expect no answer any more to what was sent."""
        self._take_back()
        self.group_consumer.close()

    def receive(self) -> list[Entry]:
        """Return what was asked for, less what others may have taken meanwhile."""
        asked_at = self._asked_at
        entries = self._receive()
        # Nobody has renewed the claim on them, for nobody knew what they are.
        if asked_at is not None and time.monotonic() - asked_at > self.timeout / 2:
            ours = {(stream, stream_id) for stream in self.streams for stream_id in self._renew(stream, entries)}
            entries = [entry for entry in entries if (entry.stream, entry.stream_id) in ours or not entry.fields]
        return entries

    def _receive(self) -> list[Entry]:
        with self._taking_back():
            entries = self.group_consumer.finish_read()
        self._asked_at = None
        self._sent.clear()
        self._adapt(entries)
        return entries

    def _adapt(self, entries: Sequence[Entry]) -> None:
        """Let the next read ask for as many entries as have READ_BYTES, if they are as large as a sample of these.

        Redis can't limit a read by bytes. So the count doubles with each read that is full: small entries among large
        ones don't make it ask for too many at once.
        """
        sample = entries[:: 1 + len(entries) // SAMPLE]
        size = sum(len(value) for entry in sample for value in entry.fields.values())
        if self.is_full(entries):
            self.count = min(2 * self.count, self.max_count)
        if size:
            self.count = max(1, min(self.count, READ_BYTES * len(sample) // (size * len(self.streams))))

    def _claim(self, claim: Callable[[str], list[Entry]]) -> list[Entry]:
        self.flush()
        self._asked_for = self.count
        with self._taking_back():
            entries = [entry for stream in self.streams for entry in claim(stream)]
        self._sent.clear()
        self._adapt(entries)
        return entries

    def _send_settled(self) -> None:
        for stream, stream_ids in self._settled.items():
            self._sent[stream] += stream_ids
        self._settled.clear()

    def _renew(self, stream: str, entries: Sequence[Entry]) -> list[str]:
        stream_ids = [entry.stream_id for entry in entries if entry.stream == stream]
        return self.group_consumer.renew(stream, stream_ids) if stream_ids else []

    @contextmanager
    def _taking_back(self) -> Iterator[None]:
        """If Redis does not answer, nobody knows what became of what was sent: acknowledge it once more."""
        try:
            yield
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        self._asked_at = None
        for stream, stream_ids in self._sent.items():
            self._settled[stream][:0] = stream_ids
        self._sent.clear()
