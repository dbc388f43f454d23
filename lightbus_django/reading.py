"""What one consumer is done with, and what is for it to handle: both go to Redis in one round trip."""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from .groups import Entry, Found, Member, id_key

logger = logging.getLogger("lightbus_django")


FIRST_COUNT = 10
"""How many entries the first read asks for, of which nobody knows yet how large they are."""

READ_BYTES = 4 * 1024 * 1024
"""How many bytes of content the entries of a read may have, as far as those before tell."""


class Reading:
    """One consumer's reads. What comes next can be asked for while what came before is still being handled."""

    def __init__(
        self, member: Member, streams: Sequence[str], *, count: int, timeout: float, in_company: bool = False
    ) -> None:
        """Make the reads of `member`.

        Args:
            count: how many entries of each stream to read at a time, if they are small.
            timeout: seconds after which others take what a consumer was given.
            in_company: whether what others left may come in a batch, once; else one at a time.
        """
        self.member = member
        self.streams = streams
        self.count = min(count, FIRST_COUNT)
        """How many entries of each stream the next read asks for."""
        self.max_count = count
        self.timeout = timeout
        self.in_company = in_company
        self.outstanding: deque[tuple[str, str]] = deque()
        """Stream and id of what is to be taken once more, one at a time."""
        self._settled: defaultdict[str, list[str]] = defaultdict(list)
        self._sent: defaultdict[str, list[str]] = defaultdict(list)
        self._asked_at: float | None = None
        self._asked_for = 0
        # Reclaiming goes through the streams in turn: what the last look found is claimed with the next one.
        self._found = Found()
        self._looks_at = ""
        self._unseen: deque[str] = deque()

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
            self.member.acknowledge(self._settled)
            self._settled.clear()

    def read(self, block: float) -> list[Entry]:
        """Acknowledge what is settled, and return what is new; waits up to `block` seconds for it."""
        self.ask(block)
        return self._receive()

    def look_back(self, in_hand: Collection[tuple[str, str]]) -> bool:
        """Acknowledge what is settled, and list what is outstanding but not in hand; return whether there is any."""
        self.flush()
        for stream in self.streams:
            pending = self.member.outstanding(stream, self.count + len(in_hand))
            places = ((stream, stream_id) for stream_id in pending)
            self.outstanding.extend(place for place in places if place not in in_hand)
        return bool(self.outstanding)

    def take(self) -> Entry | None:
        """Acknowledge what is settled, and take the next outstanding entry as Member.take does."""
        entry = self.member.take(*self.outstanding[0], acknowledge=self._settled)
        self._settled.clear()
        self.outstanding.popleft()
        return entry

    def reclaim(self) -> list[Entry]:
        """Acknowledge what is settled, and return a batch of what exceeds the timeout elsewhere, if there is any.

        What has to come alone is outstanding then.
        """
        while True:
            self.ask_to_reclaim()
            entries = self._receive()
            if entries or self.outstanding or not (self._unseen or self._found.stream):
                return entries

    def ask(self, block: float = 0.0) -> None:
        """Acknowledge what is settled and ask for what is new, which `receive` returns."""
        with self._asking():
            self.member.ask(self.streams, count=self.count, block=block, acknowledge=self._sent)

    def ask_to_reclaim(self) -> None:
        """Acknowledge what is settled and claim what was found elsewhere, which `receive` returns; and find more."""
        if not self._unseen:
            self._unseen.extend(self.streams)
        self._looks_at = self._unseen.popleft()
        with self._asking():
            self.member.ask_to_reclaim(
                self._found, then=self._looks_at, idle=self.timeout, count=self.count, acknowledge=self._sent
            )

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
        try:
            entries = self._receive_reclaimed(self._looks_at) if self._looks_at else self.member.receive()
        except BaseException:
            self._take_back()
            raise
        self._asked_at, self._looks_at = None, ""
        self._sent.clear()
        if entries:
            self._adapt(entries)
        return entries

    def _receive_reclaimed(self, stream: str) -> list[Entry]:
        found = self._found
        entries, alone, rows = self.member.receive_reclaimed(found)
        self._found = self._divided(stream, rows)
        if len(rows) >= self._asked_for:
            self._unseen.appendleft(stream)
        self.outstanding.extend((found.stream, stream_id) for stream_id in alone)
        if reclaimed := len(entries) + len(alone):
            group = self.member.group
            logger.info("%s: reclaimed %d events from processes that exceeded the timeout", group, reclaimed)
        missing = {*found.in_company, *found.alone}.difference(alone, (entry.stream_id for entry in entries))
        if missing:  # which are others' by now, or were trimmed
            trimmed = self.member.trimmed(found.stream, sorted(missing, key=id_key))
            entries += [Entry(found.stream, stream_id, {}) for stream_id in trimmed]
        return entries

    def _divided(self, stream: str, deliveries: Mapping[str, int]) -> Found:
        """Return what was found by how it is to come: in company what one process at most had in hand."""
        if not deliveries:
            return Found()
        in_company = {key: count for key, count in deliveries.items() if count <= 1} if self.in_company else {}
        return Found(stream, in_company, [key for key in deliveries if key not in in_company])

    def _adapt(self, entries: Sequence[Entry]) -> None:
        """Let the next read ask for as many entries as have READ_BYTES, if they are as large as these.

        Redis can't limit a read by bytes. So the count doubles with each read that is full: small entries among large
        ones don't make it ask for too many at once.
        """
        size = sum(len(value) for entry in entries for value in entry.fields.values())
        if self.is_full(entries):
            self.count = min(2 * self.count, self.max_count)
        if size:
            self.count = max(1, min(self.count, READ_BYTES * len(entries) // (size * len(self.streams))))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        self._sent, self._settled = self._settled, defaultdict(list)
        self._asked_at, self._asked_for = time.monotonic(), self.count
        try:
            yield
        except BaseException:
            self._take_back()
            raise

    def _renew(self, stream: str, entries: Sequence[Entry]) -> list[str]:
        stream_ids = [entry.stream_id for entry in entries if entry.stream == stream]
        return self.member.renew(stream, stream_ids) if stream_ids else []

    def _take_back(self) -> None:
        """Nobody knows what became of what was sent: acknowledge it once more, and look for all once more."""
        self._asked_at, self._looks_at = None, ""
        self._found = Found()
        self._unseen.clear()
        for stream, stream_ids in self._sent.items():
            self._settled[stream][:0] = stream_ids
        self._sent.clear()
