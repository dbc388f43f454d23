"""Tells which of many streams have new entries, with one connection that waits for all of them.

In a cluster no command reads several streams, not even on one node. There several streams are looked at in turn.
"""

import time
from collections.abc import Iterable

from lightbus_django.exceptions import BusError, BusUnavailable, NodeUnavailable

from . import scripts
from .client import RedisClient
from .cluster import POLL_INTERVAL
from .connection import PipelinedConnection


class StreamWatch:
    """Watches streams, each from a stream id on. One thread uses it.

    Every method raises BusError if Redis does not answer, or lets none of them be read.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._connection = PipelinedConnection(client)
        self._seen: dict[str, str] = {}
        """The watched streams, each with the last id that was seen in it."""

    def add(self, streams: Iterable[str]) -> None:
        """Watch some streams from their ends on."""
        keys = list(streams)
        replies = self._client.send(list(map(scripts.last_id_and_time, keys)))
        for key, reply in zip(keys, replies, strict=True):
            self._seen[key] = "0-0" if isinstance(reply, Exception) else reply[0].decode()

    def drop(self, stream: str) -> None:
        """Stop watching a stream."""
        self._seen.pop(stream, None)

    def wait(self, seconds: float) -> list[str]:
        """Return the watched streams that have new entries; wait up to `seconds` for the first one.

        A stream that can't be read counts as new, so that its listeners learn why; unless its node of a cluster can't
        be reached, because they find that out as well.
        """
        if self._client.is_of_cluster and len(self._seen) > 1:
            return self._look_until(time.monotonic() + seconds)
        ids = self._seen.values()
        command = "XREAD", "COUNT", 1, "BLOCK", max(1, round(seconds * 1000)), "STREAMS", *self._seen, *ids
        try:
            reply = self._connection.execute(command, " ".join(self._seen)) or ()
        except BusUnavailable:
            raise
        except BusError as error:  # one of them is no stream, or may not be read
            time.sleep(min(seconds, POLL_INTERVAL))
            return self._poll(error)
        return [self._saw(key.decode(), entries) for key, entries in reply]

    def _look_until(self, until: float) -> list[str]:
        while not (found := self._poll()) and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, POLL_INTERVAL))
        return found

    def _poll(self, error: BusError | None = None) -> list[str]:
        """Look at each stream by itself; raise the error, or one of theirs, if none can be read."""
        unreachable = self._client.unreachable(self._seen)
        keys = [key for key in self._seen if key not in unreachable]
        replies = self._client.send([("XREAD", "COUNT", 1, "STREAMS", key, self._seen[key]) for key in keys])
        if keys and all(isinstance(reply, Exception) for reply in replies):
            raise error or self._client.handle_error(replies[0], keys[0])
        found = []
        for key, reply in zip(keys, replies, strict=True):
            if isinstance(reply, Exception):
                if not isinstance(self._client.handle_error(reply, key), NodeUnavailable):
                    found.append(key)
            elif reply:
                found.append(self._saw(key, reply[0][1]))
        return found

    def _saw(self, stream: str, entries: list[tuple[bytes, object]]) -> str:
        self._seen[stream] = entries[-1][0].decode()
        return stream

    def close(self) -> None:
        self._connection.close()
        self._seen.clear()
