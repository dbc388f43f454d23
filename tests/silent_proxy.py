"""A TCP proxy whose connections can fall silent, as behind a firewall that drops what it does not know any more."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from .own_postgresql import free_port


class SilentProxy:
    """Passes on what is said between clients and one server."""

    def __init__(self, url: str) -> None:
        """Make a proxy in front of the server that a URL names; `url` is its own."""
        parts = urlsplit(url)
        self._server = parts.hostname or "127.0.0.1", parts.port or 5432
        self._port = free_port()
        user = f"{parts.username}@" if parts.username else ""
        self.url = parts._replace(netloc=f"{user}127.0.0.1:{self._port}").geturl()
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve in a thread."""
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", self._port))
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(self._end(server), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    async def _end(self, server: asyncio.Server) -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._abort(self._writers)

    def silence(self) -> None:
        """From now on, nothing is passed on on the connections that are open; new ones work."""
        self._loop.call_soon_threadsafe(lambda: self._silent.update(self._writers))

    def drop(self) -> None:
        """End the connections that have fallen silent."""
        self._loop.call_soon_threadsafe(self._abort, self._silent)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._server)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        await asyncio.gather(
            self._pass_on(reader, server_writer), self._pass_on(server_reader, writer), return_exceptions=True
        )
        for each in (writer, server_writer):
            each.transport.abort()
            self._writers.discard(each)
            self._silent.discard(each)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            try:
                while data := await reader.read(65536):
                    if writer not in self._silent:
                        writer.write(data)
                        await writer.drain()
            finally:  # a client that is killed may end its connection with an error
                if writer not in self._silent and writer.can_write_eof():
                    writer.write_eof()

    @staticmethod
    def _abort(writers: set[asyncio.StreamWriter]) -> None:
        for writer in list(writers):
            writer.transport.abort()
