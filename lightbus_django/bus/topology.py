"""Which node of a Redis Cluster serves which key.

`CLUSTER SLOTS` tells that. It is asked again when a node does not answer, or says that a slot is elsewhere. Only
the keys of some slots are concerned then: all others go on as before.
"""

import random
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import redis

from .cluster_node import ClusterNode, execute
from .errors import NodeError
from .server import PAUSE
from .slots import SLOTS, slot_of

REFRESH_INTERVAL = 0.25
"""Seconds between two questions who serves what, while a node is down."""

MAX_CANDIDATES = 3
"""How many of the known nodes are asked who serves what, at most: each may take a timeout."""


class ClusterTopology:
    """The nodes of a cluster, and the slots that they serve. Any thread may call any method."""

    def __init__(self, hosts: Iterable[tuple[str, int]], options: dict[str, Any]) -> None:
        """Know nothing yet.

        Args:
            hosts: host and port of some nodes.
            options: those of redis-py's connections.
        """
        self._options = options
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

    @property
    def nodes(self) -> list[ClusterNode]:
        """The nodes that are known; at first those that the URL names."""
        return list(self._nodes.values()) or [self.node(*host) for host in self._hosts]

    def node(self, host: str, port: int) -> ClusterNode:
        """Return the node at an address."""
        if found := self._nodes.get((host, port)):
            return found
        return self._nodes.setdefault((host, port), ClusterNode(self, host, port, self._options))

    def owner(self, key: str | bytes) -> ClusterNode:
        """Return the node that serves a key.

        Raises:
            NodeError: there is none.
            RedisError: nothing is known, and no node tells.
        """
        self.refresh_if_stale()
        node = self._slots[slot_of(key)]
        if node is None:
            raise NodeError(f"no node serves slot {slot_of(key)}")
        return node

    def masters(self) -> list[ClusterNode]:
        """Return the nodes that serve slots."""
        self.refresh_if_stale()
        return [node for node in set(self._slots) if node is not None]

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

    def refresh_if_stale(self, *, at_once: bool = False) -> None:
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
