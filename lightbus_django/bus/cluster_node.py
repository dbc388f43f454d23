"""One node of a Redis Cluster, and commands on their way to it."""

import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

import redis

from .errors import NodeError, NodeResting, Redirected, is_unavailable
from .server import PAUSE
from .wire import Command, exchanging

PROBE_WAIT = 0.1
"""Seconds that a caller whose events can wait gives a node that is tried again."""

ASKING: Command = ("ASKING",)
"""Lets the next command reach a key whose slot is still moving to the node."""

_REFUSALS = (redis.ResponseError, redis.AuthenticationError)
"""Errors with which a node answers. So does one that doesn't accept our password."""


class Topology(Protocol):
    """Which node serves what, as nodes change it by what they say, or don't."""

    def node(self, host: str, port: int) -> "ClusterNode": ...

    def moved(self, slot: int, node: "ClusterNode") -> None: ...

    def unserved(self, key: str | bytes) -> None: ...

    def changed(self) -> None: ...


class ClusterNode:
    """A node, with its connections. `Server` explains the methods that both have."""

    def __init__(self, topology: Topology, host: str, port: int, options: dict[str, Any]) -> None:
        self.host = host
        self.name = f"{host}:{port}"
        self.pool: Any = redis.ConnectionPool(host=host, port=port, **options)
        self._topology = topology
        self.problem: NodeResting | None = None
        """Why it is of no use: it does not answer, until it does; or it refuses, until it accepts a write."""
        self._refuses_writes = False
        self._try_at = 0.0

    @property
    def is_down(self) -> bool:
        """Whether it did not answer last time, or did not let us in. A node that refuses writes is not down."""
        return self.problem is not None and not self._refuses_writes

    @property
    def must_rest(self) -> bool:
        """Whether it is down, and it is too early to try again."""
        return self.is_down and time.monotonic() < self._try_at

    def try_again(self, command: Command = ("PING",), *, wait: float = 0.0) -> None:
        """Try a node with a problem in the background, once in each PAUSE; wait up to `wait` seconds for its answer."""
        if self.problem is not None and time.monotonic() >= self._try_at:
            self._try_at = time.monotonic() + PAUSE
            probe = threading.Thread(target=self._probe, args=[command], name=f"probe of {self.name}", daemon=True)
            probe.start()
            probe.join(wait)

    def _probe(self, command: Command) -> None:
        reply = execute(self, command)
        if not (isinstance(reply, Exception) and isinstance(self.explain(reply), NodeError)):
            self.problem = None

    def check(self) -> None:
        """Raise NodeResting if the node is down. Its callers' events can wait, but they themselves don't."""
        if self.is_down:
            self.try_again(wait=PROBE_WAIT)
        if (problem := self.problem) is not None and self.is_down:
            raise problem.with_traceback(None)

    def explain(self, error: Exception, key: str | bytes = "") -> Exception:
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
        found = NodeError(f"{self.name}: {text}", answers=isinstance(error, _REFUSALS))
        if "Hash slot not served" in text:  # the others are
            if key:
                self._topology.unserved(key)
        elif not isinstance(error, redis.exceptions.TryAgainError):
            self._refuses_writes = isinstance(error, redis.ResponseError)
            self.problem = NodeResting(
                str(found) if found.answers else f"{self.name} does not answer", answers=found.answers
            )
            self._try_at = time.monotonic() + PAUSE
        return found

    def answered(self) -> None:
        if self.is_down:
            self.problem = None


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


def execute(node: ClusterNode, command: Command) -> Any:
    """Send a command to a node; return the reply, an error as an exception."""
    exchange = Exchange(node, False, retries=0)
    exchange.add(0, command)
    while exchange.step():
        pass
    (reply,) = exchange.replies()
    return reply
