"""A PostgreSQL server of a test's own, which it may stop, crash and starve."""

import contextlib
import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import eventually


class OwnPostgreSQL:
    """The server; `start` and `stop` it as you like."""

    def __init__(self, binaries: Path, directory: Path, user: str | None) -> None:
        self._binaries = binaries
        self._data = directory / "data"
        self._options: dict[str, Any] = {"user": user} if user else {}
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._url = f"postgres://postgres@127.0.0.1:{self._port}/postgres"
        self.urls = {"DATABASE_URL": self._url, "OTHER_DATABASE_URL": self._url}
        subprocess.run(
            [binaries / "initdb", "--auth=trust", "--username=postgres", "--no-sync", "-D", self._data],
            stdout=subprocess.DEVNULL,
            check=True,
            **self._options,
        )

    def start(self, **settings: object) -> None:
        settings = {"port": self._port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", **settings}
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._data, "-F", *[f"--{key}={settings[key]}" for key in settings]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._options,
        )
        eventually(self.answers)

    def stop(self, signum: int = signal.SIGINT) -> None:
        """SIGINT is an orderly end, SIGQUIT a crash."""
        if self._process:
            self._process.send_signal(signum)
            self._process.wait(30)

    def answers(self) -> bool:
        import psycopg

        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self) -> Any:
        import psycopg

        return psycopg.connect(self._url, autocommit=True, connect_timeout=10)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(self.connect()) as connection:
            return connection.execute(sql).fetchall()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def own_postgresql() -> Iterator[OwnPostgreSQL]:
    """Make a server, not started yet; skip the test where there is none to be had."""
    pytest.importorskip("psycopg")
    found = shutil.which("initdb") or max(glob.glob("/usr/lib/postgresql/*/bin/initdb"), default=None)
    if found is None:
        pytest.skip("no binaries of PostgreSQL")
    user = None
    directory = Path(tempfile.mkdtemp(prefix="lightbus-postgresql-"))
    try:
        if os.geteuid() == 0:  # as which PostgreSQL does not run
            user = "postgres"
            try:
                shutil.chown(directory, user)
            except LookupError:
                pytest.skip("no user for PostgreSQL to run as")
        server = OwnPostgreSQL(Path(found).resolve().parent, directory, user)
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
