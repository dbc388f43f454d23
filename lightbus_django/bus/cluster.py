"""A Redis Cluster: commands that go to several nodes at a time."""

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import redis

from .cluster_node import ClusterNode, Exchange, execute
from .errors import NodeError, Redirected
from .server import scan
from .slots import key_of
from .topology import ClusterTopology
from .wire import Command, ask

POLL_INTERVAL = 0.05
"""Seconds between two looks at several streams, where Redis can't wait for all of them at a time."""

MAX_REDIRECTIONS = 5
"""How often a command is sent to another node before it fails."""


class Cluster:
    """The nodes of a cluster. `Server` explains the methods that both have."""

    def __init__(
        self, address: str, hosts: Iterable[tuple[str, int]], options: dict[str, Any], *, retries: int
    ) -> None:
        """Make a cluster, which is connected to when it is first used.

        Args:
            address: the URL to show, without a password.
            hosts: host and port of some nodes.
            options: those of redis-py's connections.
            retries: how often a command is sent again when its connection turns out to be broken.
        """
        self._address = address
        self._retries = retries
        self.topology = ClusterTopology(hosts, options)

    def __str__(self) -> str:
        return self._address

    def close(self) -> None:
        for node in self.topology.nodes:
            node.pool.disconnect(inuse_connections=False)  # a thread may be asking over one of them

    def node_of(self, key: str) -> ClusterNode:
        """Return the node that serves a key.

        Raises:
            NodeError: there is none, or it is known to be down.
        """
        node = self.topology.owner(key)
        node.check()
        return node

    def unreachable(self, keys: Collection[str]) -> Mapping[str, NodeError]:
        self.topology.refresh_if_stale()
        problems: dict[str, NodeError] = {}
        for key in keys:
            try:
                node = self.topology.owner(key)
            except NodeError as error:
                problems[key] = error
                continue
            node.try_again(("XACK", key, "", "0-0"))  # only a write shows whether it accepts writes
            if (problem := node.problem) is not None:
                problems[key] = problem
        return problems

    # --- Commands -----------------------------------------------------------------------------

    def send(self, commands: Sequence[Command], *, key: str = "", can_wait: bool = False) -> list[Any]:
        """Send commands to the nodes of their keys; to each of them before the replies of any are read.

        The reply is a NodeError where a node can't serve a command at the moment. Commands of one key stay in order.
        """
        replies: list[Any] = [None] * len(commands)
        asked: dict[int, ClusterNode] = {}
        left: Collection[int] = range(len(commands))
        for _ in range(1 + MAX_REDIRECTIONS):
            exchanges = self._exchanges(commands, left, asked, replies, key=key, can_wait=can_wait)
            running = exchanges
            while running:
                running = [each for each in running if each.step()]
            asked, left = {}, []
            for each in exchanges:
                for number, reply in zip(each.numbers, each.replies(), strict=True):
                    replies[number] = reply
                    if not isinstance(reply, Exception):
                        continue
                    replies[number] = problem = each.node.explain(reply, key or key_of(commands[number]) or "")
                    if isinstance(problem, Redirected):
                        left.append(number)
                        if problem.asks is not None:
                            asked[number] = problem.asks
                    elif self._is_served_elsewhere(commands[number], key, each.node, reply):
                        left.append(number)
            if not left:
                break
            left.sort()
        return replies

    def _exchanges(
        self,
        commands: Sequence[Command],
        numbers: Iterable[int],
        asked: Mapping[int, ClusterNode],
        replies: list[Any],
        *,
        key: str,
        can_wait: bool,
    ) -> list[Exchange]:
        """Return an exchange for each node. Where there is none, the error becomes the reply."""
        exchanges: dict[tuple[ClusterNode, bool], Exchange] = {}
        for number in numbers:
            try:
                node = asked.get(number) or self._node_for(commands[number], key)
                target = node, number in asked
                if target not in exchanges:
                    if can_wait:
                        node.check()
                    exchanges[target] = Exchange(*target, retries=self._retries)
                exchanges[target].add(number, commands[number])
            except NodeError as error:
                replies[number] = error
        return list(exchanges.values())

    def _node_for(self, command: Command, key: str) -> ClusterNode:
        if found := key or key_of(command):
            return self.topology.owner(found)
        masters = self.topology.masters()
        if not masters:
            raise NodeError("no node serves any slot")
        return random.choice([node for node in masters if not node.is_down] or masters)

    def _is_served_elsewhere(self, command: Command, key: str, node: ClusterNode, error: Exception) -> bool:
        """Whether a node has died, and another one has replaced it already."""
        if not self._retries or not isinstance(error, redis.ConnectionError):
            return False
        try:
            self.topology.refresh_if_stale(at_once=True)
            return self._node_for(command, key) is not node
        except redis.RedisError:
            return False

    def scan(self, *options: Any) -> Iterator[bytes]:
        for node in self.topology.masters():
            yield from scan(partial(_execute, node), options)

    def ask(self, command: str, *, with_password: bool = True) -> Any:
        for node in self.topology.nodes:
            if (reply := ask(node.pool, command, with_password=with_password)) is not None:
                return reply
        return None

    def forget_idle(self) -> None:
        """Do nothing: a connection that has become that of a replica says where the master is."""


def _execute(node: ClusterNode, command: Command) -> Any:
    reply = execute(node, command)
    return node.explain(reply) if isinstance(reply, Exception) else reply
