"""A connection to Redis that one consumer keeps."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import redis

from lightbus_django.exceptions import SlotMoved

from .client import RedisClient
from .cluster import MAX_REDIRECTIONS
from .cluster_node import ASKING, ClusterNode
from .errors import Redirected
from .server import Server
from .wire import Command, packed

Result = TypeVar("Result")


class PipelinedConnection:
    """A connection on which commands are sent now and replies are read later.

    redis-py's client takes a connection from its pool for each command and waits for the reply. Errors are raised as by
    RedisClient. In a cluster it is a connection to the node of one key. If the key has moved, that is a SlotMoved, and
    the next command goes to the right node.
    """

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self._connection: Any = None
        self._node: Server | ClusterNode | None = None
        self._asks: ClusterNode | None = None
        """The node to which the key is just moving: each command needs ASKING there."""
        self._unread = 0
        self._key = ""

    def send(self, commands: Sequence[Command], key: str) -> None:
        """Send commands at once, without waiting. `key` is the key they work on, for errors."""
        self._key = key
        with self._closed_on_error():
            if self._connection is None:
                self._node = self._asks or self.client.servers.node_of(key)
                self._connection = self._node.pool.get_connection()
            if self._asks is not None:
                commands = [each for command in commands for each in (ASKING, command)]
            # With unread replies redis-py would mistake one of them for the reply to its own PING.
            self._connection.send_packed_command([packed(commands)], check_health=not self._unread)
        self._unread += len(commands)

    def receive(self) -> Any:
        """Wait for the replies to all that was sent; return the last one, and ignore the others, even errors."""
        return self.receive_with(0)[0]

    def receive_with(self, following: int) -> tuple[Any, list[Any]]:
        """Wait for all replies; return the last one before those `following`, and these, errors among them as objects.

        The replies before it are ignored, even errors. While the key is moving to another node of a cluster, what
        follows is None: other keys may not have moved yet.
        """
        is_moving = self._asks is not None
        after = 2 * following if is_moving else following
        others, self._unread = self._unread - 1 - after, 0
        with self._closed_on_error():
            for _ in range(others):
                self._read_or_error()
            reply = self._connection.read_response()
            rest = [self._read_or_error() for _ in range(after)]
        if self._node is not None:
            self._node.answered()
        if is_moving and not reply:
            self._release()  # the next command finds out whether the key is still moving
        return reply, [None] * following if is_moving else rest

    def _read_or_error(self) -> Any:
        try:
            return self._connection.read_response()
        except redis.ResponseError as error:
            return error

    def execute(self, command: Command, key: str) -> Any:
        """Send one command, which works on `key`; return its reply."""

        def execute() -> Any:
            self.send([command], key)
            return self.receive()

        return follow(execute)

    def give_back(self) -> None:
        """Return the connection to the pool, after the replies to all that was sent; the next command takes one."""
        if self._connection is None:
            return
        with self._closed_on_error():
            for _ in range(self._unread):
                self._read_or_error()
        self._release()

    def close(self) -> None:
        """Close the connection; the next command opens another."""
        if self._connection is not None:
            self._connection.disconnect()
        self._release()

    def _release(self) -> None:
        if self._connection is not None and self._node is not None:
            self._node.pool.release(self._connection)
        self._connection = self._node = self._asks = None
        self._unread = 0

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        with self.client.handle_errors(self._key):
            try:
                yield
            except BaseException as error:
                # Its remaining replies belong to no command any more, and after a failover its address may belong to
                # another server.
                node = self._node
                self.close()
                if node is None or not isinstance(error, redis.RedisError):
                    raise
                problem = node.explain(error, self._key)
                if isinstance(problem, Redirected):
                    self._asks = problem.asks
                raise problem from None


def follow(ask: Callable[[], Result]) -> Result:
    """Call `ask` again if its key has moved to another node of the cluster."""
    for _ in range(MAX_REDIRECTIONS):
        try:
            return ask()
        except SlotMoved:
            continue
    return ask()
