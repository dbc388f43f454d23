"""Reads of new entries: of one server with one command; of a cluster, stream by stream."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import cycle

import msgspec

from lightbus_django.events.codec import Fields
from lightbus_django.exceptions import NodeUnavailable

from . import first_publications
from .cluster import POLL_INTERVAL
from .connection import PipelinedConnection, follow
from .wire import Command, as_fields


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


class GroupReads:
    """A consumer's reads. Every method raises what RedisClient raises, and GroupMissing."""

    def __init__(
        self, group: str, name: str, connection: Callable[[str], PipelinedConnection], *, is_of_cluster: bool
    ) -> None:
        """Make the reads of the consumer `name`, each over the `connection` for its stream."""
        self._group = group
        self._name = name
        self._connection = connection
        self._is_of_cluster = is_of_cluster
        self.unanswered: Collection[str] = ()
        """The streams that the last read could neither acknowledge nor read, because their node is down."""

    def read(
        self,
        streams: Sequence[str],
        *,
        count: int,
        block: float,
        acknowledge: Mapping[str, Sequence[str]],
        young: Sequence[str],
    ) -> list[Entry]:
        """Do what `GroupConsumer.read` does."""
        self.unanswered = ()
        if not self._is_of_cluster or len(streams) == 1:
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
        command = "XREADGROUP", "GROUP", self._group, self._name, "COUNT", count, *waiting, "STREAMS", *streams, *new
        asked = [stream for stream in young if stream in streams]
        # After the read: who publishes again records that first.
        questions = [("EXISTS", first_publications.key(stream)) for stream in asked]
        connection.send([*acknowledgements(self._group, acknowledge), command, *questions], " ".join(streams))
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


def acknowledgements(group: str, acknowledge: Mapping[str, Sequence[str]]) -> list[Command]:
    """Return the commands that acknowledge stream ids, by stream."""
    return [("XACK", stream, group, *stream_ids) for stream, stream_ids in acknowledge.items()]
