"""One Redis server, or the one that Redis Sentinel names as the master: it has all keys."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Self

from .errors import NodeError
from .wire import Command, ask, exchange

PAUSE = 4.0
"""Seconds between two attempts to reach a server that is down, for callers whose events can wait."""


class Server:
    """The server, with its connections. `Cluster` has the same methods but the last two, which its nodes have.

    Every method that sends something raises redis-py's errors.
    """

    def __init__(self, redis_py: Any, address: str) -> None:
        """Make a server of redis-py's client; `address` has no password in it."""
        self.redis_py = redis_py
        self.pool = redis_py.connection_pool
        self._address = address

    def __str__(self) -> str:
        return self._address

    def send(self, commands: Sequence[Command], *, key: str = "", can_wait: bool = False) -> list[Any]:
        """Send commands in as few round trips as their size allows; return the replies, errors as exceptions.

        This uses the pool's connections directly, because redis-py's own commands and pipelines take longer than all
        the rest of the work for an event, for options that are not used here.

        Args:
            commands: the commands.
            key: the key that decides where they go; by default each one's own does.
            can_wait: whether not to try a node of a cluster that is known to be down.
        """
        replies: list[Any] = []
        connection = self.pool.get_connection()
        try:
            connection.retry.call_with_retry(
                lambda: exchange(connection, commands, replies), lambda error: connection.disconnect()
            )
        except BaseException:
            connection.disconnect()  # otherwise its next user would read these replies
            raise
        finally:
            self.pool.release(connection)
        return replies

    def node_of(self, key: str) -> Self:
        """Return the server that has a key."""
        return self

    def unreachable(self, keys: Collection[str]) -> Mapping[str, NodeError]:
        """Return the keys whose node in a cluster is known to be of no use, and why; let it be tried again."""
        return {}

    def scan(self, *options: Any) -> Iterator[bytes]:
        """Yield the keys of all servers that SCAN finds with these options."""
        return scan(lambda command: self.send([command])[0], options)

    def ask(self, command: str, *, with_password: bool = True) -> Any:
        """Send a command to any server over a new connection, as `wire.ask` does."""
        return ask(self.pool, command, with_password=with_password)

    def forget_idle(self) -> None:
        """Close idle connections: after a failover the address may belong to another server.

        Connections in use are closed by the threads that use them.
        """
        self.pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        self.redis_py.close()

    # --- What a node does as well -------------------------------------------------------------

    def explain(self, error: Exception, key: str | bytes = "") -> Exception:
        """Take note of an error; return the one to tell, which in a cluster may be a NodeError."""
        return error

    def answered(self) -> None:
        """Take note that it has answered."""


def scan(send: Callable[[Command], Any], options: Sequence[Any]) -> Iterator[bytes]:
    """Yield what SCAN finds, by `send`, which sends a command and returns the reply."""
    cursor: Any = b"0"
    while True:
        reply = send(("SCAN", cursor, *options))
        if isinstance(reply, Exception):
            raise reply
        cursor, keys = reply
        yield from keys
        if cursor == b"0":
            return
