"""One consumer's view of a consumer group.

A group remembers which entries of a stream it has delivered. For each entry that is not acknowledged yet (*pending*),
it remembers the consumer, the time, and the number of deliveries.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import NamedTuple

import msgspec

from lightbus_django.events.codec import Fields
from lightbus_django.exceptions import BusFull, GroupMissing, NodeUnavailable

from . import first_publications, scripts
from .client import RedisClient
from .connection import PipelinedConnection, follow
from .wire import Command, as_fields

PLACEHOLDER = "nobody"
"""The consumer that holds released entries of a process that won't come back under its name."""

ALIVE_INTERVAL = 10.0
"""Seconds between two calls of `GroupConsumer.mark_alive`; see `streams.RETIRE_AFTER`."""

POLL_INTERVAL = 0.05
"""Seconds between two looks at several streams in a cluster, where Redis can't wait for all of them at a time."""

_AFTER_ALL_ENTRIES = f"{2**64 - 1}-{2**64 - 2}"
"""No entry follows this stream id, unless somebody chose the greatest possible id."""


class Entry(msgspec.Struct, frozen=True, eq=False):
    """One delivery of an entry. `fields` is empty if the entry was trimmed."""

    stream: str
    stream_id: str
    fields: Fields
    deliveries: int = 1
    is_redelivered: bool = False
    """Whether it was delivered before.

    Then this delivery is not counted yet, and the event's key may be in a transaction of another process that is still
    open.
    """
    may_be_republished: bool = True
    """False if no event of the stream had been published again when the entry was read."""


class GroupProgress(NamedTuple):
    """How far a group is in a stream."""

    position: str
    """The stream id up to which everything is acknowledged."""

    lost: int | None
    """Number of entries that were trimmed before the group read them, as far as Redis knows; None if it can't tell.

    It is too large after a failover of Redis 7.0, whose replicas have an old number of what the group has read.
    """

    start: str
    """The stream id of the first entry; if there is none, the last one that was generated."""


class GroupConsumer:
    """One consumer of a group.

    Every method raises what RedisClient raises, and GroupMissing. Only `renew`, `mark_alive`, `acknowledge` and
    `release` may be called from other threads: all others use the consumer's own connection.
    """

    def __init__(self, client: RedisClient, group: str, name: str) -> None:
        self.client = client
        self.group = group
        self.name = name
        self.unreachable: Collection[str] = ()
        """The streams that are left out because their node of a cluster is down."""
        self.unanswered: Collection[str] = ()
        """The streams that the last read could neither acknowledge nor read, because their node is down."""
        self._connections: dict[str, PipelinedConnection] = {}

    def close(self) -> None:
        """Close the connections; the next command opens another."""
        for connection in self._connections.values():
            connection.close()

    def give_back_connection(self) -> None:
        """Let other consumers use the connections; the next command takes one of the pool."""
        for connection in self._connections.values():
            connection.give_back()

    def reachable(self, streams: Collection[str]) -> list[str]:
        """Return those of some streams that are not left out."""
        return [stream for stream in streams if stream not in self.unreachable]

    def _connection(self, stream: str) -> PipelinedConnection:
        """Return the consumer's connection; in a cluster, the one for this stream."""
        name = stream if self.client.is_of_cluster else ""
        if name not in self._connections:
            self._connections[name] = PipelinedConnection(self.client)
        return self._connections[name]

    # --- Membership ---------------------------------------------------------------------------

    def join(self, stream: str, start_id: str) -> bool:
        """Create the group, its stream and this consumer where they don't exist; return whether the group is new.

        Raises:
            BusFull: Redis has no memory left for a new group.
        """
        command = scripts.join(stream, self.group, self.name, start_id=start_id)
        try:
            return bool(self._connection(stream).execute(command, stream))
        except BusFull as error:
            raise BusFull(f"can't create the consumer group {self.group!r} of {stream!r}: {error}") from None

    def leave(self, stream: str) -> None:
        """Delete this consumer unless it has pending entries. A group's last consumer is replaced by PLACEHOLDER."""
        command = scripts.leave(stream, self.group, self.name, placeholder=PLACEHOLDER)
        self._connection(stream).execute(command, stream)

    def mark_alive(self, streams: Sequence[str]) -> None:
        """Reset this consumer's idle time, and create it where it is missing, even if Redis is full.

        Redis before 7.2 does not count a read that finds nothing as activity, but it counts a look at pending entries.
        A missing group is no error.
        """
        read = "XREADGROUP", "GROUP", self.group, self.name, "COUNT", 1, "STREAMS"
        self.client.send([(*read, stream, _AFTER_ALL_ENTRIES) for stream in streams])

    def progress(self, stream: str) -> GroupProgress:
        """Return how far the group is."""
        reply = self._connection(stream).execute(scripts.progress(stream, self.group), stream)
        if reply is None:
            raise GroupMissing(f"Redis at {self.client}: the group {self.group!r} of {stream!r} does not exist")
        oldest, *ids, entries_read, length, entries_added = reply
        delivered, last, first = (stream_id.decode() for stream_id in ids)
        position = previous_id(oldest.decode()) if oldest else delivered
        lost = None
        if entries_read is not None and entries_added is not None:
            counts = {"entries_read": entries_read, "length": length, "entries_added": entries_added}
            lost = _lost(delivered, first, last, **counts)
        return GroupProgress(position, lost, first if length else last)

    # --- Reading ------------------------------------------------------------------------------

    def read(
        self,
        streams: Sequence[str],
        *,
        count: int,
        block: float,
        acknowledge: Mapping[str, Sequence[str]],
        young: Sequence[str] = (),
    ) -> list[Entry]:
        """Acknowledge entries and return new ones, in one round trip.

        Args:
            streams: the streams to read.
            count: maximum number of entries of each stream.
            block: seconds that Redis waits for the first entry; 0 does not wait.
            acknowledge: stream ids to acknowledge, by stream.
            young: the streams for which to find out whether entries may be republished.
        """
        self.unanswered = ()
        if not self.client.is_of_cluster or len(streams) == 1:
            return follow(partial(self._read, streams, count, block, acknowledge, young))
        until = time.monotonic() + block
        for stream in cycle(streams):
            if entries := follow(partial(self._read_each, streams, count, acknowledge, young)):
                return entries
            acknowledge = {}
            if (left := until - time.monotonic()) <= 0:
                return []
            # The others wait in the meantime.
            if entries := follow(partial(self._read, [stream], count, min(left, POLL_INTERVAL), {}, young)):
                return entries
        return []

    def _read(
        self,
        streams: Sequence[str],
        count: int,
        block: float,
        acknowledge: Mapping[str, Sequence[str]],
        young: Sequence[str],
    ) -> list[Entry]:
        connection = self._connection(streams[0])
        following = self._send_read(connection, streams, count, block, acknowledge, young)
        return self._receive_read(connection, following)

    def _read_each(
        self, streams: Sequence[str], count: int, acknowledge: Mapping[str, Sequence[str]], young: Sequence[str]
    ) -> list[Entry]:
        """Acknowledge entries of several streams in a cluster, and read each of them without waiting."""
        sent, entries = {}, []
        problems: dict[str, NodeUnavailable] = {}
        for stream in streams:
            own = {stream: acknowledge[stream]} if acknowledge.get(stream) else {}
            try:
                sent[stream] = self._send_read(self._connection(stream), [stream], count, 0, own, young)
            except NodeUnavailable as error:
                problems[stream] = error
        for stream, following in sent.items():
            try:
                entries += self._receive_read(self._connection(stream), following)
            except NodeUnavailable as error:
                problems[stream] = error
        self.unanswered = problems.keys()
        if problems and not entries:
            raise next(iter(problems.values()))
        return entries

    def _send_read(
        self,
        connection: PipelinedConnection,
        streams: Sequence[str],
        count: int,
        block: float,
        acknowledge: Mapping[str, Sequence[str]],
        young: Sequence[str],
    ) -> list[str]:
        """Send a read; return those of its streams of which it finds out whether entries may be republished."""
        waiting = ("BLOCK", max(1, round(block * 1000))) if block else ()
        new = [">"] * len(streams)
        command = "XREADGROUP", "GROUP", self.group, self.name, "COUNT", count, *waiting, "STREAMS", *streams, *new
        asked = [stream for stream in young if stream in streams]
        # After the read: who publishes again records that first.
        questions = [("EXISTS", first_publications.key(stream)) for stream in asked]
        connection.send([*self._acknowledgements(acknowledge), command, *questions], " ".join(streams))
        return asked

    def _receive_read(self, connection: PipelinedConnection, asked: Sequence[str]) -> list[Entry]:
        reply, answers = connection.receive_with(len(asked))
        original = {stream for stream, answer in zip(asked, answers, strict=True) if answer == 0}
        return [
            Entry(key, stream_id.decode(), as_fields(flat), 1, False, may_be_republished)
            for stream, entries in reply or ()
            for key in (stream.decode(),)
            for may_be_republished in (key not in original,)
            for stream_id, flat in entries
        ]

    def claim_own(self, stream: str, count: int) -> list[Entry]:
        """Return up to `count` of this consumer's oldest pending entries. Their delivery is not counted yet."""
        return self._claim(stream, idle=0, count=count, owner=self.name)

    def reclaim(self, stream: str, *, idle: float, count: int) -> list[Entry]:
        """Claim up to `count` entries that have been idle for `idle` seconds. Their delivery is not counted yet."""
        return self._claim(stream, idle=idle, count=count)

    def count_delivery(self, entry: Entry) -> None:
        """Store the delivery count of an entry if it is still this consumer's.

        This does not wait for the reply. The command reaches Redis even if the process is killed right after.
        """
        update = scripts.update_pending(
            entry.stream, self.group, self.name, [entry.stream_id], deliveries=entry.deliveries
        )
        self._connection(entry.stream).send([update], entry.stream)

    # --- Pending entries ----------------------------------------------------------------------

    def acknowledge(self, acknowledge: Mapping[str, Sequence[str]]) -> None:
        """Acknowledge stream ids, by stream."""
        for reply in self.client.send(self._acknowledgements(acknowledge)):
            if isinstance(reply, Exception):
                raise self.client.handle_error(reply, " ".join(acknowledge))

    def renew(self, stream: str, stream_ids: Sequence[str]) -> list[str]:
        """Renew the leases of entries: reset their idle times. Return the stream ids that are still this consumer's."""
        command = scripts.update_pending(stream, self.group, self.name, stream_ids)
        return [stream_id.decode() for stream_id in self.client.execute(command, stream)]

    def release(
        self,
        stream: str,
        stream_ids: Sequence[str],
        *,
        idle: float,
        deliveries: int | None = None,
        to: str | None = None,
    ) -> None:
        """Let other consumers reclaim pending entries before their time.

        Args:
            stream: the stream of the entries.
            stream_ids: the entries; those that are not this consumer's are left alone.
            idle: the idle time to set, in seconds.
            deliveries: the delivery count to set; None leaves it.
            to: the consumer that the entries are moved to, if not this one.
        """
        command = scripts.update_pending(
            stream, self.group, self.name, stream_ids, owner=to, idle=idle, deliveries=deliveries
        )
        self.client.execute(command, stream)

    def _claim(self, stream: str, *, idle: float, count: int, owner: str | None = None) -> list[Entry]:
        command = scripts.claim_pending(stream, self.group, self.name, idle=idle, count=count, owner=owner)
        return [
            Entry(stream, stream_id.decode(), as_fields(flat), deliveries + 1, is_redelivered=True)
            for stream_id, deliveries, flat in self._connection(stream).execute(command, stream)
        ]

    def _acknowledgements(self, acknowledge: Mapping[str, Sequence[str]]) -> list[Command]:
        return [("XACK", stream, self.group, *stream_ids) for stream, stream_ids in acknowledge.items()]


def _lost(delivered: str, first: str, last: str, *, entries_read: int, length: int, entries_added: int) -> int | None:
    """Return how many entries were removed from a stream before the group read them.

    This is known in two cases; otherwise return None. If the group has read everything, it is the difference between
    the counters, which Redis before 7.4 never corrects. If the first entry is unread, all missing entries were lost
    except those that the group has read.
    """
    if id_key(delivered) >= id_key(last):
        return max(0, entries_added - entries_read)
    if length and id_key(first) <= id_key(delivered):
        return None
    return max(0, entries_added - length - entries_read)


def id_key(stream_id: str) -> tuple[int, int]:
    """Return the sort key of a stream id. "0" is short for "0-0"."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def previous_id(stream_id: str) -> str:
    """Return the greatest stream id that is smaller."""
    milliseconds, sequence = id_key(stream_id)
    return f"{milliseconds}-{sequence - 1}" if sequence else f"{milliseconds - 1}-{2**64 - 1}"
