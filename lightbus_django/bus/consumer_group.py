"""Consumer groups of Redis Streams, from the view of one of their consumers.

A group remembers which entries of a stream it has delivered, and for each one not acknowledged yet
(*pending*), to which consumer, when, and how often.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from lightbus_django.events.codec import Fields
from lightbus_django.exceptions import BusFull, GroupMissing

from .client import RedisClient
from .connection import PipelinedConnection
from .scripts import CLAIM, JOIN, LEAVE, PROGRESS, TOUCH

NOBODY = "nobody"
"""The consumer to which a process hands its events back that will not come back under its name."""

SHOW_UP_INTERVAL = 10.0
"""Seconds between two signs of life of a consumer, whatever it waits for; see `streams.RETIRE_AFTER`."""

_BEHIND_ALL = f"{2**64 - 1}-{2**64 - 2}"
"""Nothing can be pending behind this stream id, unless somebody has chosen the greatest id there is."""


class Entry(msgspec.Struct, frozen=True, eq=False):
    """One delivery of a stream's entry. `fields` is empty where somebody trimmed it away.

    One that was taken was in another hand before, which may have its key in a transaction that is open still.
    """

    stream: str
    stream_id: str
    fields: Fields
    deliveries: int = 1
    is_taken: bool = False
    """Whether it was delivered before, so that this delivery is counted when its turn comes."""


class GroupProgress(NamedTuple):
    """Where a group stands in a stream."""

    position: str
    """The stream id up to which the group is done with everything."""

    lost: int | None
    """How many entries were trimmed that it never read, as far as Redis can tell; None if it can't tell now."""


class GroupConsumer:
    """One consumer of one group. Its methods raise as those of RedisClient do, and GroupMissing.

    Only `renew`, `show_up`, `acknowledge` and `release` may be called by other threads, or between asking and
    receiving: the others speak on a connection of its own.
    """

    def __init__(self, client: RedisClient, group: str, name: str) -> None:
        self.client = client
        self.group = group
        self.name = name
        self._connection = PipelinedConnection(client)

    def join(self, stream: str, start_id: str) -> bool:
        """Create group, stream and consumer where missing; return whether the group is new.

        Raises:
            BusFull: Redis has no memory left for that.
        """
        try:
            return bool(self._run(JOIN, stream, self.group, self.name, start_id))
        except BusFull as error:
            raise BusFull(f"can't create the consumer group {self.group!r} of {stream!r}: {error}") from None

    def leave(self, stream: str) -> None:
        """Delete this consumer if it has nothing pending; the group keeps one, for Lightbus's sake."""
        self._run(LEAVE, stream, self.group, self.name, NOBODY)

    def ask(
        self, streams: Sequence[str], *, count: int, block: float, acknowledge: Mapping[str, Sequence[str]]
    ) -> None:
        """Acknowledge, and ask for up to `count` new entries of each stream; `receive` returns them.

        Redis waits up to `block` seconds for the first entry; 0 does not wait.
        """
        waiting = ("BLOCK", max(1, round(block * 1000))) if block else ()
        new = [">"] * len(streams)
        command = "XREADGROUP", "GROUP", self.group, self.name, "COUNT", count, *waiting, "STREAMS", *streams, *new
        self._connection.send([*self._acknowledgements(acknowledge), command], " ".join(streams))

    def receive(self) -> list[Entry]:
        """Return the new entries that were asked for."""
        (reply,) = self._connection.receive()
        return [
            Entry(key, stream_id.decode(), _fields(flat))
            for stream, entries in reply or ()
            for key in (stream.decode(),)
            for stream_id, flat in entries
        ]

    def close(self) -> None:
        """Give up the connection; with the next command there will be another."""
        self._connection.close()

    def acknowledge(self, acknowledge: Mapping[str, Sequence[str]]) -> None:
        """Acknowledge stream ids, by stream."""
        for reply in self.client.send(self._acknowledgements(acknowledge)):
            if isinstance(reply, Exception):
                raise self.client.translate(reply, " ".join(acknowledge))

    def own_pending(self, stream: str, count: int) -> list[Entry]:
        """Return the oldest entries that are pending for this consumer; this delivery of them is not counted."""
        return self._claim(stream, 0, count, self.name)

    def reclaim(self, stream: str, *, idle: float, count: int) -> list[Entry]:
        """Take the oldest entries that have been idle for so many seconds; this delivery of them is not counted."""
        return self._claim(stream, idle, count)

    def count_delivery(self, entry: Entry, *, acknowledge: Mapping[str, Sequence[str]]) -> None:
        """Acknowledge, and write down how often an entry was delivered, if it is still this consumer's.

        Doesn't wait for the answer: it reaches Redis though this process be killed at once.
        """
        touch = "EVAL", TOUCH, 1, entry.stream, self.group, self.name, self.name, 0, entry.deliveries, entry.stream_id
        self._connection.send([*self._acknowledgements(acknowledge), touch], entry.stream)

    def renew(self, stream: str, stream_ids: Sequence[str]) -> list[str]:
        """Reset the idle time of the entries that are still this consumer's; return these."""
        touched = self.client.run(TOUCH, stream, self.group, self.name, self.name, 0, -1, *stream_ids)
        return [stream_id.decode() for stream_id in touched]

    def show_up(self, streams: Sequence[str]) -> None:
        """Let Redis see that this consumer is alive.

        A read that finds nothing is no sign of life to Redis before 7.2; a look at what is pending is one. Where the
        group is missing, the consumer's own thread will find out.
        """
        read = "XREADGROUP", "GROUP", self.group, self.name, "COUNT", 1, "STREAMS"
        self.client.send([(*read, stream, _BEHIND_ALL) for stream in streams])

    def release(
        self, stream: str, stream_ids: Sequence[str], *, idle: float, deliveries: int = -1, to: str | None = None
    ) -> None:
        """Let another process have outstanding entries at once.

        Args:
            idle: seconds of idle time after which others reclaim.
            deliveries: what to set the count of deliveries to; -1 leaves it.
            to: another consumer under whose name they wait, if not this one's.
        """
        milliseconds = round(idle * 1000)
        self.client.run(TOUCH, stream, self.group, self.name, to or self.name, milliseconds, deliveries, *stream_ids)

    def progress(self, stream: str, *, show_up: bool = False) -> GroupProgress:
        """Return where the group stands; with `show_up`, become one of its consumers if need be."""
        reply = self._run(PROGRESS, stream, self.group, self.name, int(show_up))
        if reply is None:
            raise GroupMissing(f"Redis at {self.client}: the group {self.group!r} of {stream!r} is gone")
        oldest, delivered, entries_read, last, length, entries_added, first = reply
        position = before(oldest.decode()) if oldest else delivered.decode()
        if entries_read is None or entries_added is None:
            return GroupProgress(position, None)
        ids = (stream_id.decode() for stream_id in (delivered, first or b"0-0", last))
        return GroupProgress(
            position, _lost(*ids, entries_read=entries_read, length=length, entries_added=entries_added)
        )

    def _claim(self, stream: str, idle: float, count: int, *consumer: str) -> list[Entry]:
        rows = self._run(CLAIM, stream, self.group, self.name, round(idle * 1000), count, *consumer)
        return [
            Entry(stream, raw_id.decode(), _fields(flat), deliveries + 1, is_taken=True)
            for raw_id, deliveries, flat in rows
        ]

    def _acknowledgements(self, acknowledge: Mapping[str, Sequence[str]]) -> list[tuple[str | int, ...]]:
        return [("XACK", stream, self.group, *stream_ids) for stream, stream_ids in acknowledge.items()]

    def _run(self, script: str, stream: str, *args: str | int) -> Any:
        return self._say([("EVAL", script, 1, stream, *args)], stream)

    def _say(self, commands: Sequence[Sequence[str | int]], what: str) -> Any:
        self._connection.send(commands, what)
        (reply,) = self._connection.receive()
        return reply


def _fields(flat: Sequence[bytes] | None) -> Fields:
    return dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}


def _lost(delivered: str, first: str, last: str, *, entries_read: int, length: int, entries_added: int) -> int | None:
    """Return how many entries are gone from a stream, less those that the group has read.

    It can be told where the first entry is one that it has not read, or where it has read all: then
    from what Redis before 7.4 has missed to count itself, for ever.
    """
    if id_key(delivered) >= id_key(last):
        return max(0, entries_added - entries_read)
    if length and id_key(first) <= id_key(delivered):
        return None
    return max(0, entries_added - length - entries_read)


def id_key(stream_id: str) -> tuple[int, int]:
    """Return what stream ids are sorted by; "0" is short for "0-0"."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def before(stream_id: str) -> str:
    """Return the greatest stream id that is smaller."""
    milliseconds, sequence = id_key(stream_id)
    return f"{milliseconds}-{sequence - 1}" if sequence else f"{milliseconds - 1}-{2**64 - 1}"
