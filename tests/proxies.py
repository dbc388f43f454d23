"""A TCP proxy in front of a server, for networks that are slow, drop packets or lead elsewhere."""

import asyncio
import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CHUNK = 64 * 1024


class Proxy:
    """Forwards connections to a server while the block runs; `url` is the server's own with the proxy's address."""

    def __init__(self, url: str, *, pause: float = 0.0) -> None:
        """Listen on a free port.

        Args:
            url: URL of the server.
            pause: seconds after each 64 KiB that a client sends.
        """
        parts = urlsplit(url)
        self.target = parts.hostname, parts.port
        """Host and port to which new connections lead."""
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
        self._listener.bind(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        user, at, _ = parts.netloc.rpartition("@")
        self.url = parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}").geturl()
        self._pause = pause
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._is_silent = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        start = asyncio.start_server(self._accept, sock=self._listener, limit=CHUNK)
        self._server = self._loop.run_until_complete(start)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def silence(self, *, new: bool = False) -> None:
        """Forward nothing more on open connections, nor on later ones if `new`; close none, like a firewall."""

        def silence() -> None:
            self._is_silent = new
            self._silent |= self._writers

        self._loop.call_soon_threadsafe(silence)

    def drop(self) -> None:
        """Reset the connections that are silent."""
        self._loop.call_soon_threadsafe(self._abort, self._silent)

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._abort(self._writers)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self.target, limit=CHUNK)
        except OSError:
            writer.transport.abort()
            return
        writers = {writer, server_writer}
        self._writers |= writers
        if self._is_silent:
            self._silent |= writers
        await asyncio.gather(
            self._forward(reader, server_writer, self._pause),
            self._forward(server_reader, writer),
            return_exceptions=True,
        )
        self._abort(writers)
        self._writers -= writers
        self._silent -= writers

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause: float = 0.0) -> None:
        with contextlib.suppress(OSError):
            try:
                while data := await reader.read(CHUNK):
                    if writer not in self._silent:
                        writer.write(data)
                        await writer.drain()
                    if pause:
                        await asyncio.sleep(pause)
            finally:  # a client that is killed may end its connection with an error
                if writer not in self._silent and writer.can_write_eof():
                    writer.write_eof()

    @staticmethod
    def _abort(writers: set[asyncio.StreamWriter]) -> None:
        for writer in list(writers):
            writer.transport.abort()
