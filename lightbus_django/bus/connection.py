"""A connection to Redis that one consumer keeps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from .client import RedisClient
from .wire import Command, packed


class PipelinedConnection:
    """A connection on which commands are sent now and replies are read later.

    redis-py's client takes a connection from its pool for each command and waits for the reply. Errors are raised as by
    RedisClient.
    """

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self._connection: Any = None
        self._unread = 0
        self._key = ""

    def send(self, commands: Sequence[Command], key: str) -> None:
        """Send commands at once, without waiting. `key` is the key they work on, for errors."""
        self._key = key
        with self._closed_on_error():
            if self._connection is None:
                self._connection = self.client.redis_py.connection_pool.get_connection()
            # With unread replies redis-py would mistake one of them for the reply to its own PING.
            self._connection.send_packed_command([packed(commands)], check_health=not self._unread)
        self._unread += len(commands)

    def receive(self) -> Any:
        """Wait for the replies to all that was sent; return the last one, and ignore the others, even errors."""
        return self.receive_with(0)[0]

    def receive_with(self, following: int) -> tuple[Any, list[Any]]:
        """Wait for all replies; return the last one before those `following`, and these, errors among them as objects.

        The replies before it are ignored, even errors.
        """
        others, self._unread = self._unread - 1 - following, 0
        with self._closed_on_error():
            for _ in range(others):
                self._read_or_error()
            return self._connection.read_response(), [self._read_or_error() for _ in range(following)]

    def _read_or_error(self) -> Any:
        try:
            return self._connection.read_response()
        except redis.ResponseError as error:
            return error

    def execute(self, command: Command, key: str) -> Any:
        """Send one command, which works on `key`; return its reply."""
        self.send([command], key)
        return self.receive()

    def give_back(self) -> None:
        """Return the connection to the pool, after the replies to all that was sent; the next command takes one."""
        if self._connection is None:
            return
        with self._closed_on_error():
            for _ in range(self._unread):
                self._read_or_error()
        self._unread = 0
        self.client.redis_py.connection_pool.release(self._connection)
        self._connection = None

    def close(self) -> None:
        """Close the connection; the next command opens another."""
        if self._connection is not None:
            self._connection.disconnect()
            self.client.redis_py.connection_pool.release(self._connection)
            self._connection = None
        self._unread = 0

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        with self.client.handle_errors(self._key):
            try:
                yield
            except BaseException:
                # Its remaining replies belong to no command any more, and after a failover its address may belong to
                # another server.
                self.close()
                raise
