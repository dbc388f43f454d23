"""A Redis Cluster of a test's own, which may fail over, lose nodes, move slots and grow while events flow."""

from contextlib import ExitStack
from itertools import combinations, cycle
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from .servers import LOOPBACK, Server, redis_server
from .waiting import eventually

SLOTS = 16384
MASTERS = 3
NODE_TIMEOUT = 1000
"""Milliseconds after which the others replace a master that does not answer."""


class Cluster:
    """Masters that share the slots, each with a replica. A context manager, as its servers are.

    `nodes` are the masters at first, then their replicas in the same order. A node is a `Server`: it may be killed,
    started again, frozen and thawed.
    """

    def __init__(self, *config: str, password: str = "", replicas: int = 1) -> None:
        """
        Args:
            config: more lines of configuration for each node.
            password: what the default user is asked for; also that of the replicas.
            replicas: how many each master has.
        """
        self.password = password
        self._config = [
            "cluster-enabled yes",
            f"cluster-node-timeout {NODE_TIMEOUT}",
            "cluster-require-full-coverage no",
            "cluster-replica-validity-factor 0",
            "cluster-allow-replica-migration no",  # a master without slots stays one
            "repl-diskless-sync-delay 0",
            "appendonly yes",
            *([f"masterauth {password}"] if password else []),
            *config,
        ]
        self._replicas = replicas
        self._stack = ExitStack()
        self.nodes: list[Server] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack
            self.nodes = [self._started() for _ in range(MASTERS * (1 + self._replicas))]
            self._form()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _started(self) -> Server:
        return self._stack.enter_context(Server(*self._config, binary=redis_server(), password=self.password))

    def _form(self) -> None:
        masters, replicas = self.nodes[:MASTERS], self.nodes[MASTERS:]
        for number, master in enumerate(masters):
            first, last = SLOTS * number // MASTERS, SLOTS * (number + 1) // MASTERS - 1
            ask(master, "CLUSTER", "ADDSLOTSRANGE", first, last)
        for number, node in enumerate(self.nodes, 1):
            ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number)
        for one, other in combinations(self.nodes, 2):  # all of them, so that nobody waits for gossip
            ask(one, "CLUSTER", "MEET", LOOPBACK, other.port)
        eventually(lambda: all(self._is_known(node) for node in self.nodes))
        for replica, master in zip(replicas, cycle(masters)):
            ask(replica, "CLUSTER", "REPLICATE", id_of(master))
        self.await_whole()

    @property
    def url(self) -> str:
        """What clients are told: two of the nodes."""
        return self.url_of("", self.password) if self.password else self.address

    @property
    def address(self) -> str:
        """The URL without the password."""
        return f"redis+cluster://{','.join(f'{LOOPBACK}:{node.port}' for node in self.nodes[:2])}"

    def url_of(self, user: str, password: str) -> str:
        return self.address.replace("://", f"://{user}:{password}@")

    def client(self, **options: Any) -> Any:
        """redis-py's client of the whole cluster, for the test itself; close it, or use it in a `with`."""
        nodes = [redis.cluster.ClusterNode(LOOPBACK, node.port) for node in self.nodes]
        options = {"decode_responses": True, "password": self.password or None, **options}
        return redis.RedisCluster(startup_nodes=nodes, require_full_coverage=False, **options)

    # --- Who is who ---------------------------------------------------------------------------

    def master_of(self, key: str) -> Server:
        """The master that serves a key: of those that say so of themselves, the last one elected."""
        slot = key_slot(key.encode())
        found = [(own.epoch, node) for node in self.nodes for own in views(node)[:1] if own.has(slot)]
        assert found, f"nobody serves {key}"
        return max(found, key=lambda each: each[0])[1]

    def replica_of(self, master: Server) -> Server:
        """A replica of a master, which may be dead."""
        of = {view.master: view.port for node in self.nodes for view in views(node) if "slave" in view.flags}
        master_id = next(view.id for node in self.nodes for view in views(node) if view.port == master.port)
        return next(node for node in self.nodes if node.port == of[master_id])

    def successor(self, key: str, old: Server) -> Server | None:
        """The master that serves a key instead of an old one, as soon as all other nodes agree on it."""
        slot = key_slot(key.encode())
        owners = {view.port for node in self.nodes if node is not old for view in views(node) if view.has(slot)}
        return next((node for node in self.nodes if {node.port} == owners and node is not old), None)

    def other_master(self, key: str) -> Server:
        """A master that does not serve a key."""
        own = self.master_of(key)
        return next(node for node in self.nodes if node is not own and any(v.is_master for v in views(node)[:1]))

    def key_on(self, node: Server, pattern: str = "api{}.*:stream") -> str:
        """A key that a master serves: `pattern` with a number in it."""
        own = views(node)[0]
        return next(key for number in range(SLOTS) if own.has(key_slot((key := pattern.format(number)).encode())))

    # --- What happens to it -------------------------------------------------------------------

    def fail_over(self, key: str) -> Server:
        """Let a replica replace the master of a key, by CLUSTER FAILOVER; return the new master."""
        replica = self.replica_of(self.master_of(key))
        ask(replica, "CLUSTER", "FAILOVER")
        eventually(lambda: self.master_of(key) is replica)
        return replica

    def await_another_master(self, key: str, old: Server) -> Server:
        """Wait until another master serves a key than one that was killed or frozen; return it."""
        found: Server = eventually(lambda: self.successor(key, old), 30)
        return found

    def await_whole(self) -> None:
        """Wait until every running node sees every slot served, and no replica is missing or behind."""
        eventually(self._is_whole, 30)

    def _is_whole(self) -> bool:
        running = [node for node in self.nodes if views(node)]
        if not all(_sees_all_slots(node) for node in running):
            return False
        replications = [ask(node, "INFO", "replication") for node in running]
        replicas = [text for text in replications if "role:slave" in text]
        return len(replicas) == MASTERS * self._replicas and all("link_status:up" in text for text in replicas)

    def add_master(self) -> Server:
        """Add a master without slots, and return it."""
        node = self._started()
        for other in self.nodes:
            ask(node, "CLUSTER", "MEET", LOOPBACK, other.port)
        self.nodes.append(node)
        eventually(lambda: self._is_known(node) and "cluster_state:ok" in ask(node, "CLUSTER", "INFO"))
        return node

    def migrate(self, key: str, to: Server, *, at_a_time: int = 1) -> None:
        """Move the slot of a key to another master, keys and all."""
        self.begin_migration(key, to)
        while self.move_keys(key, to, at_a_time):
            pass
        self.end_migration(key, to)

    def begin_migration(self, key: str, to: Server) -> None:
        slot, master = key_slot(key.encode()), self.master_of(key)
        ask(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", id_of(master))
        ask(master, "CLUSTER", "SETSLOT", slot, "MIGRATING", id_of(to))

    def move_keys(self, key: str, to: Server, count: int) -> int:
        """Move some keys of a slot that migrates; return how many."""
        keys = ask(self.master_of(key), "CLUSTER", "GETKEYSINSLOT", key_slot(key.encode()), count)
        if keys:
            self.move(keys, to)
        return len(keys)

    def move(self, keys: list[str], to: Server) -> None:
        """Move these keys of a slot that migrates."""
        password = ["AUTH", self.password] if self.password else []
        ask(self.master_of(keys[0]), "MIGRATE", LOOPBACK, to.port, "", 0, 5000, *password, "KEYS", *keys)

    def end_migration(self, key: str, to: Server) -> None:
        slot, master = key_slot(key.encode()), self.master_of(key)
        others = [node for node in self.nodes if node not in (to, master) and any(v.is_master for v in views(node)[:1])]
        for node in (to, master, *others):
            ask(node, "CLUSTER", "SETSLOT", slot, "NODE", id_of(to))

    def _is_known(self, node: Server) -> bool:
        """Whether a node and all others know each other."""
        ports = {other.port for other in self.nodes}
        return {view.port for view in views(node) if "handshake" not in view.flags} == ports and all(
            any(view.port == node.port for view in views(other)) for other in self.nodes
        )


class View:
    """What a node says of one node, maybe itself: a line of CLUSTER NODES."""

    def __init__(self, line: str) -> None:
        self.id, address, flags, self.master, _, _, epoch, self.link, *slots = line.split()
        self.port = int(address.partition("@")[0].rpartition(":")[2])
        self.flags = flags.split(",")
        self.epoch = int(epoch)
        ranges = [slot.partition("-") for slot in slots if not slot.startswith("[")]
        self.ranges = [(int(first), int(last or first)) for first, _, last in ranges]

    @property
    def is_master(self) -> bool:
        return "master" in self.flags

    def has(self, slot: int) -> bool:
        return self.is_master and any(first <= slot <= last for first, last in self.ranges)


def views(node: Server) -> list[View]:
    """What a node says of the cluster, of itself first; nothing if it does not answer."""
    try:
        lines = ask(node, "CLUSTER", "NODES", timeout=1).splitlines()
    except (redis.ConnectionError, redis.TimeoutError):
        return []
    return sorted((View(line) for line in lines), key=lambda view: "myself" not in view.flags)


def id_of(node: Server) -> str:
    return str(ask(node, "CLUSTER", "MYID"))


def ask(node: Server, *command: str | int, timeout: float = 10) -> Any:
    """Send a command to one node; return the reply."""
    with node.client(socket_timeout=timeout, retry=Retry(NoBackoff(), 0), protocol=2) as client:
        client.response_callbacks.clear()
        return client.execute_command(*command)


def _sees_all_slots(node: Server) -> bool:
    info = ask(node, "CLUSTER", "INFO")
    return "cluster_state:ok" in info and f"cluster_slots_ok:{SLOTS}" in info
