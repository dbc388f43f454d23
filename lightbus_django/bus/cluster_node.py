"""One node of a Redis Cluster, and commands on their way to it."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import redis

from .errors import NodeError, NodeResting, Redirected, is_unavailable
from .wire import Command, exchange, exchanging

PAUSE = 4.0
"""Seconds between two attempts to reach a node that is down, in the background."""

PROBE_WAIT = 0.1
"""Seconds that a caller whose events can wait gives a node that is tried again."""

ASKING: Command = ("ASKING",)
"""Lets the next command reach a key whose slot is still moving to the node."""

_DOWN = (redis.ConnectionError, redis.TimeoutError)


class Topology(Protocol):
    """Which node serves what, as nodes change it by what they say, or don't."""

    def node(self, host: str, port: int) -> "ClusterNode": ...

    def moved(self, slot: int, node: "ClusterNode") -> None: ...

    def changed(self) -> None: ...


class ClusterNode:
    """A node, with its connections. `Server` explains the methods that both have."""

    def __init__(self, topology: Topology, host: str, port: int, options: dict[str, Any]) -> None:
        self.host = host
        self.name = f"{host}:{port}"
        self.pool: Any = redis.ConnectionPool(host=host, port=port, **options)
        self._topology = topology
        self._try_at: float | None = None

    @property
    def is_down(self) -> bool:
        """Whether it did not answer last time."""
        return self._try_at is not None

    @property
    def must_rest(self) -> bool:
        """Whether it is down, and it is too early to try again."""
        return self._try_at is not None and time.monotonic() < self._try_at

    def try_again(self, *, wait: float = 0.0) -> None:
        """Try a node that is down in the background, once in each PAUSE; wait up to `wait` seconds for its answer."""
        if self.is_down and not self.must_rest:
            self._try_at = time.monotonic() + PAUSE
            probe = threading.Thread(target=self._probe, name=f"probe of {self.name}", daemon=True)
            probe.start()
            probe.join(wait)

    def _probe(self) -> None:
        """Find out whether it answers again, be it with an error."""
        try:
            exchange_with(self, [("PING",)])
        except redis.RedisError as error:
            self.explain(error)

    def check(self) -> None:
        """Raise NodeResting if the node is down. Its callers' events can wait, but they themselves don't."""
        self.try_again(wait=PROBE_WAIT)
        if self.is_down:
            raise NodeResting(f"{self.name} does not answer")

    def explain(self, error: Exception) -> Exception:
        if isinstance(error, redis.exceptions.AskError):  # or MovedError
            other = self._topology.node(error.host or self.host, error.port)
            text = f"{self.name} names {other.name} for slot {error.slot_id}"
            if not isinstance(error, redis.exceptions.MovedError):
                return Redirected(text, other)
            self._topology.moved(error.slot_id, other)
            return Redirected(text)
        text = str(error)
        if text.startswith("UNBLOCKED"):
            return Redirected(f"{self.name}: {text}")
        if isinstance(error, NodeError) or not is_unavailable(error):
            return error
        self._topology.changed()
        if isinstance(error, _DOWN):
            self._try_at = time.monotonic() + PAUSE
        return NodeError(f"{self.name}: {text}")

    def answered(self) -> None:
        self._try_at = None


class Exchange:
    """Some commands on their way to a node, and their replies."""

    def __init__(self, node: ClusterNode, asking: bool, *, retries: int) -> None:
        """Make an exchange; `step` runs it, when its commands are added.

        Args:
            node: the node.
            asking: whether the keys are still moving to the node.
            retries: how often to send what is unanswered again when the connection turns out to be broken.
        """
        self.node = node
        self.numbers: list[int] = []
        """The numbers of the commands."""
        self._commands: list[Command] = []
        self._asking = asking
        self._received: list[Any] = []
        self._error: Exception | None = None
        self._steps = self._run(retries)

    def add(self, number: int, command: Command) -> None:
        self.numbers.append(number)
        if self._asking:
            self._commands.append(ASKING)
        self._commands.append(command)

    def step(self) -> bool:
        """Receive the replies to the last step, and send more commands; return whether there are replies to come."""
        try:
            next(self._steps)
        except StopIteration:
            self.node.answered()
            return False
        except redis.RedisError as error:
            self._error = error
            return False
        return True

    def replies(self) -> list[Any]:
        """Return the replies; what has not been answered has the error for a reply."""
        received = self._received[1::2] if self._asking else self._received
        return [*received, *[self._error] * (len(self.numbers) - len(received))]

    def _run(self, retries: int) -> Iterator[None]:
        connection = self.node.pool.get_connection()
        try:
            while True:
                try:
                    yield from exchanging(connection, self._commands, self._received)
                    break
                except redis.ConnectionError:
                    connection.disconnect()
                    if not retries:
                        raise
                    retries -= 1
        except BaseException:
            connection.disconnect()  # otherwise its next user would read these replies
            raise
        finally:
            self.node.pool.release(connection)


def exchange_with(node: ClusterNode, commands: Sequence[Command]) -> list[Any]:
    """Send commands to a node; return the replies."""
    replies: list[Any] = []
    connection = node.pool.get_connection()
    try:
        exchange(connection, commands, replies)
    except BaseException:
        connection.disconnect()
        raise
    finally:
        node.pool.release(connection)
    node.answered()
    return replies
