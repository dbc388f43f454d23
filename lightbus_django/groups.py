"""Consumer groups of Redis Streams, from the view of one of their consumers.

A group remembers which entries of a stream it has delivered, and for each one not acknowledged yet
(*pending*), to which consumer, when, and how often.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from .exceptions import GroupMissing
from .line import Line
from .messages import Fields
from .scripts import LEAVE, RECLAIM, TAKE, TOUCH
from .transport import Transport

NOBODY = "nobody"
"""The consumer to which a process hands its events back that will not come back under its name."""

SHOW_UP_INTERVAL = 60.0
"""Seconds between two signs of life of a consumer that finds nothing to read."""


class Entry(msgspec.Struct, frozen=True, eq=False):
    """One delivery of a stream's entry. `fields` is empty where somebody trimmed it away."""

    stream: str
    stream_id: str
    fields: Fields
    deliveries: int = 1


class Standing(NamedTuple):
    """Where a group stands in a stream."""

    position: str
    """The stream id up to which the group is done with everything."""

    lost: int | None
    """How many entries were trimmed that it never read, as far as Redis can tell; None if it can't tell now."""


class Member:
    """One consumer of one group. Its methods raise as those of Transport do, and GroupMissing."""

    def __init__(self, transport: Transport, group: str, name: str) -> None:
        self.transport = transport
        self.group = group
        self.name = name
        self._line = Line(transport)
        self._show_up_at: dict[str, float] = {}
        client = transport.client
        self._touch = client.register_script(TOUCH)
        self._reclaim = client.register_script(RECLAIM)
        self._leave = client.register_script(LEAVE)

    def join(self, stream: str, start_id: str) -> bool:
        """Create group, stream and consumer where missing; return whether the group is new.

        In one transaction: a Lightbus service that starts destroys groups without a consumer.
        """
        pipeline = self.transport.client.pipeline(transaction=True)
        pipeline.xgroup_create(stream, self.group, id=start_id, mkstream=True)
        pipeline.xgroup_createconsumer(stream, self.group, self.name)
        with self.transport.errors(stream):
            created, consumer_created = pipeline.execute(raise_on_error=False)
            if isinstance(consumer_created, Exception):
                raise created if isinstance(created, Exception) else consumer_created
            if isinstance(created, Exception) and not str(created).startswith("BUSYGROUP"):
                raise created
        return not isinstance(created, Exception)

    def leave(self, stream: str) -> None:
        """Delete this consumer if it has nothing pending; the group keeps one, for Lightbus's sake."""
        with self.transport.errors(stream):
            self._leave(keys=[stream], args=[self.group, self.name, NOBODY])

    def ask(
        self, streams: Sequence[str], *, count: int, block: float, acknowledge: Mapping[str, Sequence[str]]
    ) -> None:
        """Acknowledge, and ask for up to `count` new entries of each stream; `receive` returns them.

        Redis waits up to `block` seconds for the first entry; 0 does not wait.
        """
        waiting = ("BLOCK", max(1, round(block * 1000))) if block else ()
        new = [">"] * len(streams)
        command = "XREADGROUP", "GROUP", self.group, self.name, "COUNT", count, *waiting, "STREAMS", *streams, *new
        self._send(acknowledge, command, " ".join(streams))

    def receive(self) -> list[Entry]:
        """Return the new entries that were asked for."""
        reply = self._line.receive()
        return [
            Entry(key, stream_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {})
            for stream, entries in reply or ()
            for key in (stream.decode(),)
            for stream_id, flat in entries
        ]

    def close(self) -> None:
        """Give up the connection on which `ask` and `receive` speak."""
        self._line.close()

    def acknowledge(self, acknowledge: Mapping[str, Sequence[str]]) -> None:
        """Acknowledge stream ids, by stream."""
        pipeline = self.transport.client.pipeline(transaction=False)
        for stream, stream_ids in acknowledge.items():
            pipeline.xack(stream, self.group, *stream_ids)
        with self.transport.errors():
            pipeline.execute()

    def outstanding(self, stream: str, count: int) -> list[str]:
        """Return the oldest stream ids that are pending for this consumer."""
        with self.transport.errors(stream):
            return [row["message_id"].decode() for row in self._pending(stream, count, consumername=self.name)]

    def take(self, stream: str, stream_id: str, *, acknowledge: Mapping[str, Sequence[str]]) -> Entry | None:
        """Acknowledge, then deliver one outstanding entry again, counting the delivery, in one round trip.

        None if it is another consumer's by now.
        """
        self._send(acknowledge, ("EVAL", TAKE, 1, stream, self.group, self.name, stream_id), stream)
        reply = self._line.receive()
        if reply is None:
            return None
        deliveries, entries = reply
        # An entry that was trimmed comes back as nothing, or from Redis before 7 as a nil.
        flat = entries[0][1] if entries and entries[0] else []
        return Entry(stream, stream_id, dict(zip(flat[::2], flat[1::2], strict=True)), deliveries + 1)

    def reclaim(self, stream: str, *, idle: float, count: int) -> tuple[int, list[str]]:
        """Make pending entries that nobody has touched for `idle` seconds outstanding for this consumer.

        Their deliveries are not counted up. Returns how many there were, and the stream ids of those
        that somebody has trimmed away, which are acknowledged.
        """
        milliseconds = round(idle * 1000)
        with self.transport.errors(stream):
            stream_ids = [row["message_id"] for row in self._pending(stream, count, idle=milliseconds)]
            if not stream_ids:
                return 0, []
            claimed, lost = self._reclaim(keys=[stream], args=[self.group, self.name, milliseconds, *stream_ids])
        return claimed, [stream_id.decode() for stream_id in lost]

    def renew(self, stream: str, stream_ids: Sequence[str]) -> list[str]:
        """Start the clock of entries anew, of those that are still this consumer's; return these."""
        with self.transport.errors(stream):
            touched = self._touch(keys=[stream], args=[self.group, self.name, self.name, 0, -1, *stream_ids])
        return [stream_id.decode() for stream_id in touched]

    def hand_back(
        self, stream: str, stream_ids: Sequence[str], *, idle: float, deliveries: int = -1, to: str | None = None
    ) -> None:
        """Let another process have outstanding entries at once.

        Args:
            idle: seconds of idle time after which others reclaim.
            deliveries: what to set the count of deliveries to; -1 leaves it.
            to: another consumer under whose name they wait, if not this one's.
        """
        milliseconds = round(idle * 1000)
        with self.transport.errors(stream):
            self._touch(
                keys=[stream], args=[self.group, self.name, to or self.name, milliseconds, deliveries, *stream_ids]
            )

    def standing(self, stream: str) -> Standing:
        """Return where the group stands."""
        pipeline = self.transport.client.pipeline(transaction=True)
        pipeline.xinfo_stream(stream)
        pipeline.xinfo_groups(stream)
        pipeline.xpending_range(stream, self.group, min="-", max="+", count=1)
        with self.transport.errors(stream):
            about, groups, oldest = pipeline.execute(raise_on_error=False)
            for reply in (about, groups, oldest):
                if isinstance(reply, Exception):
                    raise reply
        for group in groups:
            if group["name"] == self.group.encode():
                delivered = group["last-delivered-id"].decode()
                self._show_up(stream, about["last-generated-id"])
                position = before(oldest[0]["message_id"].decode()) if oldest else delivered
                return Standing(position, _lost(about, delivered, group.get("entries-read")))
        raise GroupMissing(f"Redis at {self.transport}: the group {self.group!r} of {stream!r} is gone")

    def _show_up(self, stream: str, last_id: bytes) -> None:
        """Let this consumer not count as idle: to Redis before 7.2 a read that finds nothing is no sign of life.

        What is read here is what this consumer has outstanding behind the last entry: nothing.
        """
        if time.monotonic() < self._show_up_at.get(stream, 0.0):
            return
        with self.transport.errors(stream):
            self.transport.client.xreadgroup(self.group, self.name, {stream: last_id}, count=1)
        self._show_up_at[stream] = time.monotonic() + SHOW_UP_INTERVAL

    def _send(self, acknowledge: Mapping[str, Sequence[str]], command: Sequence[str | int], what: str) -> None:
        commands = [("XACK", stream, self.group, *stream_ids) for stream, stream_ids in acknowledge.items()]
        self._line.send([*commands, command], what)

    def _pending(self, stream: str, count: int, **filters: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.transport.client.xpending_range(
            stream, self.group, min="-", max="+", count=count, **filters
        )
        return rows


def _lost(about: dict[str, Any], delivered: str, entries_read: int | None) -> int | None:
    """Return how many entries are gone from a stream, less those that the group has read.

    It can be told where the first entry is one that it has not read, or where it has read all: then
    from what Redis before 7.4 has missed to count itself, for ever.
    """
    if entries_read is None or "entries-added" not in about:
        return None
    if id_key(delivered) >= id_key(about["last-generated-id"].decode()):
        return max(0, int(about["entries-added"]) - entries_read)
    first = about.get("recorded-first-entry-id", b"0-0").decode()
    if about["length"] and id_key(first) <= id_key(delivered):
        return None
    return max(0, int(about["entries-added"]) - int(about["length"]) - entries_read)


def id_key(stream_id: str) -> tuple[int, int]:
    """Return what stream ids are sorted by; "0" is short for "0-0"."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def before(stream_id: str) -> str:
    """Return the greatest stream id that is smaller."""
    milliseconds, sequence = id_key(stream_id)
    return f"{milliseconds}-{sequence - 1}" if sequence else f"{milliseconds - 1}-{2**64 - 1}"
