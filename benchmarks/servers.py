"""Servers of one's own: a Redis that keeps nothing, and how a server is started and waited for; all on one core."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import redis

from lightbus_django.embedded import embedded_server
from lightbus_django.exceptions import LightbusError

from .cores import on_core_of

LOOPBACK = "127.0.0.1"
START_TIMEOUT = STOP_TIMEOUT = 30.0


class Unavailable(Exception):
    """A server, or a package, that is not to be had here; what needs it is skipped."""


def redis_server(url: str | None, binary: str | None) -> AbstractContextManager[str]:
    """Return what yields the URL of a Redis that is empty, or raises Unavailable.

    Args:
        url: one that runs; else one is started.
        binary: the program to start; by default `redis-server`, or the embedded Valkey where there is none.
    """
    if url:
        return _redis_there(url)
    if binary := binary or shutil.which("redis-server"):
        return _own_redis(binary)
    return _embedded()


@contextmanager
def _redis_there(url: str) -> Iterator[str]:
    with redis.Redis.from_url(url) as client:
        try:
            keys = client.dbsize()
        except redis.RedisError as error:
            raise Unavailable(f"no Redis: {error}") from None
        if keys:
            raise Unavailable(f"that Redis has {keys} keys, and a benchmark deletes all: name a database that is empty")
        yield url
        client.flushdb()


@contextmanager
def _own_redis(binary: str) -> Iterator[str]:
    port = free_port()
    command = [binary, "--port", str(port), "--bind", LOOPBACK, "--save", "", "--appendonly", "no"]
    url = f"redis://{LOOPBACK}:{port}/0"

    def answers() -> bool:
        with suppress(redis.ConnectionError), redis.Redis.from_url(url) as client:
            return bool(client.ping())
        return False

    with tempfile.TemporaryDirectory(prefix="benchmarks-redis-") as directory, running(command, answers, cwd=directory):
        yield url


@contextmanager
def _embedded() -> Iterator[str]:
    with ExitStack() as stack:
        try:
            with on_core_of("servers"):
                url = stack.enter_context(embedded_server())
        except LightbusError as error:
            raise Unavailable(f"no Redis: {error}") from None
        yield url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[Any], answers: Callable[[], bool], **options: Any) -> Iterator[None]:
    """Run a server on the servers' core, from when it answers; raises Unavailable if it does not start."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        with on_core_of("servers"):
            process = subprocess.Popen(command, **quiet, **options)
    except OSError as error:
        raise Unavailable(f"{command[0]} does not start: {error}") from None
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"{command[0]} does not start")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGINT)  # on SIGTERM PostgreSQL would wait for its clients
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
