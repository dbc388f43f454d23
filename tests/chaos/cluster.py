"""A Redis Cluster, and what the storm does to it. Replicas lag behind before their masters end, so writes are lost."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.clusters import Cluster, ask, views
from tests.servers import Server

LAG = 0.6
"""Seconds at most in which a replica gets nothing before its master ends; the others must not replace it for that."""


class ChaosCluster(Cluster):
    """Has what the harness asks of a `Redis`, and generators of mischief, which yield seconds to wait."""

    runs = True
    exit_code = None
    log = Path("cluster")

    def __init__(self, seed: str) -> None:
        super().__init__("stream-node-max-entries 10")  # streams are trimmed by whole nodes
        self.keys: list[str] = []
        """The streams to whose nodes something is to happen."""
        self.random = random.Random(f"{seed} cluster")

    def start(self) -> None:
        """Do nothing: its nodes run."""

    def answers(self) -> bool:
        return self._is_whole()

    def client(self, **options: Any) -> Any:
        return super().client(decode_responses=False, socket_timeout=0.5, socket_connect_timeout=0.5, **options)

    # --- Mischief -----------------------------------------------------------------------------

    def fail_over_master(self) -> Iterator[float]:
        """As an operator does it: CLUSTER FAILOVER."""
        key = self.random.choice(self.keys)
        old = self.master_of(key)
        ask(self.replica_of(old), "CLUSTER", "FAILOVER")
        yield from _until(lambda: self.successor(key, old))

    def kill_master(self) -> Iterator[float]:
        """It comes back as a replica of the one that has replaced it."""
        key = self.random.choice(self.keys)
        old = self.master_of(key)
        yield from self._lagging(old, old.kill)
        yield from _until(lambda: self.successor(key, old))
        old.start()
        yield from _until(lambda: not is_master(old))

    def freeze_master(self) -> Iterator[float]:
        """Until it is replaced, which it learns as it thaws."""
        key = self.random.choice(self.keys)
        old = self.master_of(key)
        yield from self._lagging(old, old.freeze)
        yield from _until(lambda: self.successor(key, old))
        old.thaw()
        yield from _until(lambda: not is_master(old))

    def migrate_slot(self) -> Iterator[float]:
        """The slot of a stream, key by key."""
        key = self.random.choice(self.keys)
        source = self.master_of(key)
        target = self.random.choice([node for node in self.nodes if node is not source and is_master(node)])
        self.begin_migration(key, target)
        yield self.random.uniform(0, 1)
        while self.move_keys(key, target, 1):
            yield self.random.uniform(0, 1)
        self.end_migration(key, target)

    def _lagging(self, master: Server, end: Callable[[], None]) -> Iterator[float]:
        """End a master whose replica lacks what was written last."""
        replica = self.replica_of(master)
        replica.freeze()
        ask(master, "CLIENT", "KILL", "TYPE", "replica")
        yield self.random.uniform(0, LAG)
        end()
        replica.thaw()


def is_master(node: Server) -> bool:
    """Whether a node says so of itself."""
    return any(view.is_master for view in views(node)[:1])


def _until(condition: Callable[[], Any], seconds: float = 60) -> Iterator[float]:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the cluster did not get over it"
        yield 0.1
