"""One consumer's view of a consumer group.

A group remembers which entries of a stream it has delivered. For each entry that is not acknowledged yet (*pending*),
it remembers the consumer, the time, and the number of deliveries.
"""

from collections.abc import Collection, Mapping, Sequence

from lightbus_django.exceptions import BusError, BusFull, GroupMissing

from . import scripts
from .client import RedisClient
from .connection import PipelinedConnection
from .group_progress import GroupProgress, group_progress
from .group_reads import Entry, GroupReads, acknowledgements
from .wire import as_fields

PLACEHOLDER = "nobody"
"""The consumer that holds released entries of a process that won't come back under its name."""

ALIVE_INTERVAL = 10.0
"""Seconds between two calls of `GroupConsumer.mark_alive`; see `streams.RETIRE_AFTER`."""

_AFTER_ALL_ENTRIES = f"{2**64 - 1}-{2**64 - 2}"
"""No entry follows this stream id, unless somebody chose the greatest possible id."""


class GroupConsumer:
    """One consumer of a group.

    Every method raises what RedisClient raises, and GroupMissing. Only `renew`, `mark_alive`, `acknowledge` and
    `release` may be called from other threads: all others use the consumer's own connection.
    """

    def __init__(self, client: RedisClient, group: str, name: str) -> None:
        self.client = client
        self.group = group
        self.name = name
        self.unreachable: Mapping[str, BusError] = {}
        """The streams that are left out because their node of a cluster can't be used, and why."""
        self._connections: dict[str, PipelinedConnection] = {}
        self._reads = GroupReads(group, name, self._connection, is_of_cluster=client.is_of_cluster)

    def close(self) -> None:
        """Close the connections; the next command opens another."""
        for connection in self._connections.values():
            connection.close()

    def give_back_connection(self) -> None:
        """Let other consumers use the connections; the next command takes one of the pool."""
        for connection in self._connections.values():
            connection.give_back()

    @property
    def unanswered(self) -> Collection[str]:
        """The streams that the last read could neither acknowledge nor read, because their node is down."""
        return self._reads.unanswered

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
        return group_progress(reply)

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
        return self._reads.read(streams, count=count, block=block, acknowledge=acknowledge, young=young)

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
        for reply in self.client.send(acknowledgements(self.group, acknowledge)):
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
