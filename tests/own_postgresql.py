"""A PostgreSQL server of a test's own, which it may stop, crash and starve."""

import contextlib
import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .waiting import eventually


class OwnPostgreSQL:
    """The server; `start` and `stop` it as you like."""

    def __init__(self, binaries: Path, directory: Path, user: str | None) -> None:
        self._binaries = binaries
        self._data = directory / "data"
        self._options: dict[str, Any] = {"user": user} if user else {}
        self.port = free_port()
        self._settings: dict[str, object] = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres"
        self.urls = {"DATABASE_URL": self.url, "OTHER_DATABASE_URL": self.url}
        subprocess.run(
            [binaries / "initdb", "--auth=trust", "--username=postgres", "--no-sync", "-D", self._data],
            stdout=subprocess.DEVNULL,
            check=True,
            **self._options,
        )

    def start(self, **settings: object) -> None:
        self._settings |= settings
        eventually(self._starts)

    def _starts(self) -> bool:
        # It ends at once while processes of one that was killed are there.
        if self._process is None or self._process.poll() is not None:
            settings = [f"--{key}={value}" for key, value in self._settings.items()]
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, "-F", *settings],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                **self._options,
            )
        return self.answers()

    def migrate(self) -> None:
        """Create our tables, and those of the tests."""
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--verbosity=0"],
            cwd=Path(__file__).resolve().parent.parent,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", **self.urls},
            check=True,
        )

    def stop(self, signum: int = signal.SIGINT) -> None:
        """SIGINT is an orderly end, SIGQUIT a crash; SIGKILL leaves its processes to notice that by themselves."""
        if self._process:
            self._process.send_signal(signum)
            self._process.wait(30)

    @contextlib.contextmanager
    def pooled(self) -> Iterator[str | None]:
        """Yield the URL of a pgbouncer in front, in transaction mode; None where that is not installed."""
        binary = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        if binary is None:
            yield None
            return
        port = free_port()
        directory = self._data.parent
        config = directory / "pgbouncer.ini"
        config.write_text(PGBOUNCER.format(port=port, server=self.port))
        user = directory / "users.txt"
        user.write_text('"postgres" ""\n')
        for path in (config, user):
            path.chmod(0o644)
        process = subprocess.Popen(
            [binary, "-q", str(config)],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._options,
        )
        try:
            eventually(lambda: _listens(port))
            yield f"postgres://postgres@127.0.0.1:{port}/postgres"
        finally:
            process.kill()
            process.wait()

    def answers(self) -> bool:
        import psycopg

        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self) -> Any:
        import psycopg

        return psycopg.connect(self.url, autocommit=True, connect_timeout=10)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(self.connect()) as connection:
            return connection.execute(sql).fetchall()


PGBOUNCER = """
[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = trust
auth_file = users.txt
pool_mode = transaction
max_client_conn = 500
default_pool_size = 80
server_login_retry = 0.2
unix_socket_dir =
"""


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


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
    # Below root's own temporary directories the user of PostgreSQL has no access.
    parent = "/tmp" if os.geteuid() == 0 else None
    directory = Path(tempfile.mkdtemp(prefix="lightbus-postgresql-", dir=parent))
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
