"""A Redis Cluster: which node serves which key, and commands that go to several nodes at a time.

`CLUSTER SLOTS` tells which node serves which slots. It is asked again when a node does not answer, or says that a slot
is elsewhere. Only the keys of some slots are concerned then: all others go on as before.
"""

import random
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import redis

from .cluster_node import ClusterNode, Exchange, execute
from .errors import NodeError, Redirected
from .server import PAUSE, scan
from .slots import SLOTS, key_of, slot_of
from .wire import Command, ask

REFRESH_INTERVAL = 0.25
"""Seconds between two questions who serves what, while a node is down."""

POLL_INTERVAL = 0.05
"""Seconds between two looks at several streams, where Redis can't wait for all of them at a time."""

MAX_CANDIDATES = 3
"""How many of the known nodes are asked who serves what, at most: each may take a timeout."""

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
        self._options = options
        self._retries = retries
        self._hosts = list(hosts)
        self._nodes: dict[tuple[str, int], ClusterNode] = {}
        self._slots: list[ClusterNode | None] = []
        """The node of each slot."""
        self._is_stale = True
        """Whether to ask again who serves what."""
        self._refresh_at = 0.0
        self._problem: redis.RedisError = NodeError("no node is known")
        """Why no node could tell."""
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return self._address

    def close(self) -> None:
        for node in self._nodes.values():
            node.pool.disconnect(inuse_connections=False)  # a thread may be asking over one of them

    # --- Who serves what ----------------------------------------------------------------------

    def node_of(self, key: str) -> ClusterNode:
        """Return the node that serves a key.

        Raises:
            NodeError: there is none, or it is known to be down.
        """
        node = self._owner(key)
        node.check()
        return node

    def unreachable(self, keys: Collection[str]) -> Mapping[str, NodeError]:
        self._refresh_if_stale()
        problems: dict[str, NodeError] = {}
        for key in keys:
            try:
                node = self._owner(key)
            except NodeError as error:
                problems[key] = error
                continue
            node.try_again(("XACK", key, "", "0-0"))  # only a write shows whether it accepts writes
            if (problem := node.problem) is not None:
                problems[key] = problem
        return problems

    def node(self, host: str, port: int) -> ClusterNode:
        """Return the node at an address."""
        if found := self._nodes.get((host, port)):
            return found
        return self._nodes.setdefault((host, port), ClusterNode(self, host, port, self._options))

    def moved(self, slot: int, node: ClusterNode) -> None:
        """Take note that another node serves a slot now."""
        self._slots[slot] = node
        self._is_stale = True

    def unserved(self, key: str | bytes) -> None:
        """Take note that no node serves the slot of a key."""
        self._slots[slot_of(key)] = None
        self._is_stale = True

    def changed(self) -> None:
        """Take note that something has happened to one of the nodes."""
        self._is_stale = True

    def _owner(self, key: str | bytes) -> ClusterNode:
        self._refresh_if_stale()
        node = self._slots[slot_of(key)]
        if node is None:
            raise NodeError(f"no node serves slot {slot_of(key)}")
        return node

    def _refresh_if_stale(self, *, at_once: bool = False) -> None:
        """Ask who serves what, if that may have changed: in the background, where what is known will do.

        Raises:
            RedisError: nothing is known, and no node tells.
        """
        if not self._slots:
            with self._lock:  # who waits here shares what the first one finds out
                if not self._slots and time.monotonic() >= self._refresh_at:
                    self._refresh(self._candidates())
            if not self._slots:
                raise self._problem.with_traceback(None)
        elif self._is_stale and time.monotonic() >= self._refresh_at:
            candidates = self._candidates()
            if not at_once:
                self._refresh_at = time.monotonic() + PAUSE  # a fork may cut the question off
                threading.Thread(target=self._refresh, args=[candidates], name="cluster slots", daemon=True).start()
            elif healthy := [node for node in candidates if not node.is_down]:
                self._refresh(healthy)

    def _candidates(self) -> list[ClusterNode]:
        """Return the nodes to ask: those first that are not down, and none that must rest."""
        known = list(self._nodes.values())
        random.shuffle(known)
        candidates = sorted(known, key=lambda node: node.is_down)[:MAX_CANDIDATES]
        candidates += [node for host in self._hosts if (node := self.node(*host)) not in candidates]
        return [node for node in candidates if not node.must_rest]

    def _refresh(self, candidates: Iterable[ClusterNode]) -> None:
        try:
            for node in candidates:
                reply = execute(node, ("CLUSTER", "SLOTS"))
                if not isinstance(reply, redis.RedisError):
                    self._adopt(reply, node)
                    return
                self._problem = reply
                node.explain(reply)
        finally:
            self._refresh_at = time.monotonic() + REFRESH_INTERVAL

    def _adopt(self, reply: Sequence[Any], told_by: ClusterNode) -> None:
        slots = self._slots.copy() or [None] * SLOTS  # during a failover some slots may briefly have no node
        served, told = 0, set[ClusterNode]()
        for first, last, *servers in reply:
            # The first one is the master. The others may be, next time.
            nodes = [self.node(host.decode() if host else told_by.host, port) for host, port, *_ in servers]
            slots[first : last + 1] = nodes[:1] * (last + 1 - first)
            served += last + 1 - first
            told.update(nodes)
        self._slots = slots
        self._forget_all_but(told.union(slots))
        self._is_stale = served < SLOTS or any(node is None or node.is_down for node in set(slots))

    def _forget_all_but(self, nodes: Collection[ClusterNode | None]) -> None:
        """Forget the nodes that have left the cluster, but for those that the URL names."""
        for address, node in list(self._nodes.items()):
            if node not in nodes and address not in self._hosts:
                del self._nodes[address]
                node.pool.disconnect(inuse_connections=False)

    def _masters(self) -> list[ClusterNode]:
        self._refresh_if_stale()
        return [node for node in set(self._slots) if node is not None]

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
            return self._owner(found)
        masters = self._masters()
        if not masters:
            raise NodeError("no node serves any slot")
        return random.choice([node for node in masters if not node.is_down] or masters)

    def _is_served_elsewhere(self, command: Command, key: str, node: ClusterNode, error: Exception) -> bool:
        """Whether a node has died, and another one has replaced it already."""
        if not self._retries or not isinstance(error, redis.ConnectionError):
            return False
        try:
            self._refresh_if_stale(at_once=True)
            return self._node_for(command, key) is not node
        except redis.RedisError:
            return False

    def scan(self, *options: Any) -> Iterator[bytes]:
        for node in self._masters():
            yield from scan(partial(_execute, node), options)

    def ask(self, command: str, *, with_password: bool = True) -> Any:
        nodes = list(self._nodes.values()) or [self.node(*host) for host in self._hosts]
        for reply in map(partial(ask, command=command, with_password=with_password), (node.pool for node in nodes)):
            if reply is not None:
                return reply
        return None

    def forget_idle(self) -> None:
        """Do nothing: a connection that has become that of a replica says where the master is."""


def _execute(node: ClusterNode, command: Command) -> Any:
    reply = execute(node, command)
    return node.explain(reply) if isinstance(reply, Exception) else reply
