"""What one consumer is done with, and what is for it to handle: both go to Redis in one round trip."""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .groups import Entry, Member

logger = logging.getLogger("lightbus_django")


class Reading:
    """One consumer's reads. What is new can be asked for while what came before is still being handled."""

    def __init__(self, member: Member, streams: Sequence[str], *, count: int, timeout: float) -> None:
        """Make the reads of `member`.

        Args:
            count: how many entries of each stream to read at a time.
            timeout: seconds after which others take what a consumer was given.
        """
        self.member = member
        self.streams = streams
        self.count = count
        self.timeout = timeout
        self.outstanding: deque[tuple[str, str]] = deque()
        """Stream and id of what is to be taken once more, one at a time."""
        self._settled: defaultdict[str, list[str]] = defaultdict(list)
        self._sent: defaultdict[str, list[str]] = defaultdict(list)
        self._asked_at: float | None = None
        self._reclaims: str | None = None
        self._unseen: deque[tuple[str, str]] = deque()

    @property
    def is_asked(self) -> bool:
        """Whether Redis was asked for entries that nobody has received yet."""
        return self._asked_at is not None

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

    def look_back(self) -> bool:
        """Acknowledge what is settled, and list what is outstanding; return whether there is something."""
        self.flush()
        for stream in self.streams:
            self.outstanding.extend((stream, stream_id) for stream_id in self.member.outstanding(stream, self.count))
        return bool(self.outstanding)

    def take(self) -> Entry | None:
        """Acknowledge what is settled, and take the next outstanding entry as Member.take does."""
        entry = self.member.take(*self.outstanding[0], acknowledge=self._settled)
        self._settled.clear()
        self.outstanding.popleft()
        return entry

    def claim(self) -> tuple[int, list[Entry]]:
        """Acknowledge what is settled, and make outstanding what exceeds the timeout elsewhere.

        Returns how many entries, and those that somebody has trimmed away.
        """
        self.flush()
        count, lost = 0, []
        for stream in self.streams:
            claimed, lost_ids = self.member.reclaim(stream, idle=self.timeout, count=self.count)
            count += claimed
            lost += [Entry(stream, stream_id, {}) for stream_id in lost_ids]
        self._tell(count)
        return count, lost

    def reclaim(self) -> list[Entry]:
        """Acknowledge what is settled, and return some of what exceeds the timeout elsewhere, if there is any."""
        entries: list[Entry] = []
        while not entries:
            self.ask_to_reclaim()
            entries = self._receive()
            if not self._unseen:
                break
        return entries

    def ask(self, block: float = 0.0) -> None:
        """Acknowledge what is settled and ask for what is new, which `receive` returns."""
        with self._asking():
            self.member.ask(self.streams, count=self.count, block=block, acknowledge=self._sent)

    def ask_to_reclaim(self) -> None:
        """Acknowledge what is settled and ask for what exceeds the timeout elsewhere, which `receive` returns."""
        if not self._unseen:
            self._unseen.extend((stream, "0-0") for stream in self.streams)
        self._reclaims, start = self._unseen.popleft()
        with self._asking():
            self.member.ask_to_reclaim(
                self._reclaims, idle=self.timeout, start=start, count=self.count, acknowledge=self._sent
            )

    def receive(self) -> list[Entry]:
        """Return what was asked for, less what others may have taken meanwhile."""
        asked_at = self._asked_at
        entries = self._receive()
        # Nobody has renewed the claim on them, for nobody knew what they are.
        if asked_at is not None and time.monotonic() - asked_at > self.timeout / 2:
            ours = {(stream, stream_id) for stream in self.streams for stream_id in self._renew(stream, entries)}
            entries = [entry for entry in entries if (entry.stream, entry.stream_id) in ours]
        return entries

    def _receive(self) -> list[Entry]:
        stream, self._reclaims = self._reclaims, None
        try:
            if stream is None:
                entries = self.member.receive()
            else:
                entries, start = self.member.receive_reclaimed(stream)
                if start != "0-0":
                    self._unseen.appendleft((stream, start))
                self._tell(len(entries))
        except BaseException:
            self._take_back()
            raise
        self._asked_at = None
        self._sent.clear()
        return entries

    @contextmanager
    def _asking(self) -> Iterator[None]:
        self._sent, self._settled = self._settled, defaultdict(list)
        self._asked_at = time.monotonic()
        try:
            yield
        except BaseException:
            self._reclaims = None
            self._take_back()
            raise

    def _tell(self, reclaimed: int) -> None:
        if reclaimed:
            group = self.member.group
            logger.info("%s: reclaimed %d events from processes that exceeded the timeout", group, reclaimed)

    def _renew(self, stream: str, entries: Sequence[Entry]) -> list[str]:
        stream_ids = [entry.stream_id for entry in entries if entry.stream == stream]
        return self.member.renew(stream, stream_ids) if stream_ids else []

    def _take_back(self) -> None:
        """Nobody knows what became of what was sent: acknowledge it once more."""
        self._asked_at = None
        for stream, stream_ids in self._sent.items():
            self._settled[stream][:0] = stream_ids
        self._sent.clear()
