"""The databases of a run: a PostgreSQL as it comes, and a file of SQLite; with the tables in them."""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from .servers import LOOPBACK, Unavailable, free_port, running

ROOT = Path(__file__).resolve().parent.parent


class Databases:
    """Starts each database when it is first asked for; ends them with its `with` block."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._urls: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def url(self, name: str) -> str:
        """Return the URL of "postgres" or "sqlite", with our tables; raises Unavailable."""
        if name not in self._urls:
            url = self._stack.enter_context(DATABASES[name]())
            _migrate(url)
            self._urls[name] = url
        return self._urls[name]


@contextmanager
def _sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="benchmarks-sqlite-") as directory:
        yield f"sqlite:///{directory}/benchmarks.sqlite3"


@contextmanager
def _postgresql() -> Iterator[str]:
    """A database of its own on the server of DATABASE_URL, or on one that is started."""
    server = os.environ.get("DATABASE_URL", "")
    if not server.startswith("postgres"):
        with _own_postgresql() as url:
            yield url
            return
    import psycopg

    name = f"lightbus_benchmarks_{os.getpid()}"
    try:
        connection: Any = psycopg.connect(server, autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        raise Unavailable(f"no PostgreSQL: {error}") from None
    with connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield f"{server.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _own_postgresql(**options: Any) -> Iterator[str]:
    """With default settings, so that each commit waits for the disk; `options` are those of its process."""
    try:
        import psycopg
    except ImportError:
        raise Unavailable("no psycopg, which comes with the extra [benchmarks]") from None

    found = shutil.which("initdb") or max(glob.glob("/usr/lib/postgresql/*/bin/initdb"), default=None)
    if found is None:
        raise Unavailable("no PostgreSQL: neither its binaries are here nor does DATABASE_URL name one")
    binaries = Path(found).resolve().parent
    with tempfile.TemporaryDirectory(prefix="benchmarks-postgresql-", ignore_cleanup_errors=True) as directory:
        options["cwd"] = directory
        if os.geteuid() == 0:  # as which PostgreSQL does not run
            options["user"] = "postgres"
            try:
                shutil.chown(directory, "postgres")
            except LookupError:
                raise Unavailable("no PostgreSQL: there is no user for it to run as") from None
        data, port = f"{directory}/data", free_port()
        initdb = [str(binaries / "initdb"), "--auth=trust", "--username=postgres", "--encoding=UTF8", "-D", data]
        subprocess.run(initdb, stdout=subprocess.DEVNULL, check=True, **options)
        url = f"postgres://postgres@{LOOPBACK}:{port}/postgres"

        def answers() -> bool:
            with suppress(psycopg.OperationalError):
                psycopg.connect(url, connect_timeout=10).close()
                return True
            return False

        where = [f"--port={port}", f"--listen_addresses={LOOPBACK}", "--unix_socket_directories="]
        with running([binaries / "postgres", "-D", data, *where], answers, **options):
            yield url


@contextmanager
def _slow_postgresql() -> Iterator[str]:
    """A server of its own to which the disk seems slow: a commit takes some milliseconds, as on network disks."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unavailable("no C compiler, for the library that makes fdatasync slow")
    with tempfile.TemporaryDirectory(prefix="benchmarks-slow-disk-") as directory:
        library = f"{directory}/slow_disk.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", library, str(Path(__file__).with_name("slow_disk.c"))], check=True
        )
        Path(directory).chmod(0o755)
        with _own_postgresql(env={**os.environ, "LD_PRELOAD": library}) as url:
            yield url


@contextmanager
def _mariadb() -> Iterator[str]:
    """A database of its own on the server of MARIADB_URL, or on the one of this machine."""
    try:
        import MySQLdb
    except ImportError:
        raise Unavailable("no mysqlclient") from None
    server = os.environ.get("MARIADB_URL", f"mysql://root@{LOOPBACK}:3306/")
    parts = urlsplit(server)
    name = f"lightbus_benchmarks_{os.getpid()}"
    try:
        connection = MySQLdb.connect(
            host=parts.hostname or LOOPBACK,
            port=parts.port or 3306,
            user=parts.username or "root",
            password=parts.password or "",
        )
    except MySQLdb.Error as error:
        raise Unavailable(f"no MariaDB: {error}") from None
    with closing(connection):
        connection.cursor().execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        try:
            yield f"{server.rpartition('/')[0]}/{name}"
        finally:
            connection.cursor().execute(f"DROP DATABASE {name}")


DATABASES: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "postgres": _postgresql,
    "postgres-slow": _slow_postgresql,
    "sqlite": _sqlite,
    "mariadb": _mariadb,
}


def environment(database_url: str, redis_url: str) -> dict[str, str]:
    """The environment of a measured process."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
        "DATABASE_URL": database_url,
        "LIGHTBUS_URL": redis_url,
    }


def _migrate(url: str) -> None:
    if not find_spec("environ"):
        raise Unavailable("no django-environ, which comes with the extra [benchmarks]")
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity=0"],
        cwd=ROOT,
        env=environment(url, "redis://none"),
        check=True,
    )
