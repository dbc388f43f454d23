"""A connection to Redis of one's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis

from .client import RedisClient
from .wire import packed


class PipelinedConnection:
    """A connection that is kept, and on which replies are fetched when they are wanted.

    redis-py's client takes one from its pool for each command, and waits for the reply there and then.
    """

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self._connection: Any = None
        self._sent = 0
        self._what = ""

    def send(self, commands: Sequence[Sequence[str | int]], what: str) -> None:
        """Send commands in one go; `what` as RedisClient.errors takes it."""
        self._what = what
        with self._errors():
            if self._connection is None:
                self._connection = self.client.redis_py.connection_pool.get_connection()
            # redis-py would take a reply that was not read yet for that to its own PING.
            self._connection.send_packed_command([packed(commands)], check_health=not self._sent)
        self._sent += len(commands)

    def receive(self, count: int = 1) -> list[Any]:
        """Wait for what was sent; return the last `count` replies, and pass over the others, errors too."""
        others, self._sent = self._sent - count, 0
        with self._errors():
            for _ in range(others):
                with suppress(redis.ResponseError):
                    self._connection.read_response()
            return [self._connection.read_response() for _ in range(count)]

    def close(self) -> None:
        """Give the connection back; with the next command there will be another."""
        if self._connection is not None:
            self._connection.disconnect()
            self.client.redis_py.connection_pool.release(self._connection)
            self._connection = None
        self._sent = 0

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with self.client.errors(self._what):
            try:
                yield
            except BaseException:
                # What it still has to say answers nothing that anybody will ask; and after a failover its address may
                # stand for another server.
                self.close()
                raise
