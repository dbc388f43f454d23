"""Servers of a test's own that do not answer: from the start, or from some moment on."""

import contextlib
import socket
import threading
from collections.abc import Iterator

LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """Yield a port that takes connections, and never says anything."""
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen(100)
        yield server.getsockname()[1]


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """Yield a port at which nobody listens, and nobody else will."""
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        yield server.getsockname()[1]


class Proxy:
    """Stands before a server. Once told to `drop` it forwards nothing, and closes nothing, as a firewall does."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._dropping = threading.Event()
        self._sockets: list[socket.socket] = []
        self._server = socket.create_server((LOOPBACK, 0))
        self._server.listen(100)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def drop(self) -> None:
        """From now on nothing gets through, in either direction, on the connections that are open or come."""
        self._dropping.set()

    def close(self) -> None:
        """Close all connections."""
        for each in [self._server, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._sockets.append(client)
                if self._dropping.is_set():
                    continue
                upstream = socket.create_connection(self._target)
                self._sockets.append(upstream)
                for source, sink in ((client, upstream), (upstream, client)):
                    threading.Thread(target=self._forward, args=[source, sink], daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._dropping.is_set():
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
