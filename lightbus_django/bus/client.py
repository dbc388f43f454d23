"""A client of Redis: its connections and errors, and adding events to streams."""

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import redis

from lightbus_django.conf import URL_HELP
from lightbus_django.events.codec import Fields
from lightbus_django.exceptions import BusError, BusUnsupported, ConfigurationError, NodeUnavailable

from .address import connect
from .cluster import Cluster
from .errors import translate
from .sandbox import NO_BUS, keep, keeps_events
from .server import PAUSE, Server
from .wire import Command, flat

_WITHOUT_PASSWORD = "without any password"  # noqa: S105


class RedisClient:
    """A client of one Redis server, of the server that Redis Sentinel names as the master, or of a cluster.

    Every method that sends something raises BusUnavailable if Redis can't be reached in time or can't serve requests,
    and BusError if it replies with any other error.
    """

    def __init__(self, url: str, *, timeout: float, retries: int = 1, can_wait: bool = False) -> None:
        """Create a client, which connects when it is first used.

        Args:
            url: as the setting URL.
            timeout: seconds to wait for a connection, and for each reply.
            retries: how often a command is sent again over a new connection when its connection turns out to be
                broken. Consumers use 0, because they have to find out what Redis delivered.
            can_wait: whether not to try a node of a cluster that is known to be down, except now and then. Then all
                commands to it fail at once.

        Raises:
            ConfigurationError: the URL can't be read or has unsupported options.
        """
        self.url = url
        try:
            self._servers = connect(url, timeout=timeout, retries=retries)
        except ValueError:
            raise ConfigurationError(URL_HELP) from None  # its text may contain a part of the password
        except TypeError as error:
            names = ", ".join(re.findall(r"'\w+'", str(error)))
            raise ConfigurationError(f'settings.LIGHTBUS["URL"] has an unsupported option: {names}') from None
        self._can_wait = can_wait
        self._try_at: float | None = None
        self._role: Any = None

    def __str__(self) -> str:
        """The address, without user and password."""
        return str(self._servers)

    def close(self) -> None:
        self._servers.close()

    @property
    def servers(self) -> Server | Cluster:
        """The server, or the servers of a cluster.

        Raises:
            ConfigurationError: this is a test that has not asked for a real bus.
        """
        if keeps_events():
            raise ConfigurationError(NO_BUS)
        return self._servers

    @property
    def is_of_cluster(self) -> bool:
        """Whether keys are on several servers. Then a command can't work on streams of several slots."""
        return isinstance(self._servers, Cluster)

    def unreachable(self, streams: Collection[str]) -> Mapping[str, BusError]:
        """Return those of some streams whose node in a cluster can't be used, and why: it is down or refuses writes."""
        with self.handle_errors():
            problems = self.servers.unreachable(streams)
        return {stream: translate(problem, str(self), stream) for stream, problem in problems.items()}

    # --- Commands -----------------------------------------------------------------------------

    def send(self, commands: Sequence[Command], *, key: str = "", can_wait: bool = False) -> list[Any]:
        """Send commands in as few round trips as their size allows; return the replies.

        An error reply is a redis-py exception: pass it to `handle_error`. So is, in a cluster, what one of the nodes
        can't serve at the moment.

        Args:
            commands: the commands.
            key: the key that decides to which node of a cluster they go; by default each one's own does.
            can_wait: as for the client; for these commands only.
        """
        try:
            replies = self.servers.send(commands, key=key, can_wait=can_wait or self._can_wait)
        except redis.RedisError as error:
            raise self.handle_error(error) from None
        self._try_at = None
        return replies

    def execute(self, command: Command, key: str) -> Any:
        """Send one command, which works on `key`; return its reply."""
        (reply,) = self.send([command], key=key)
        if isinstance(reply, Exception):
            raise self.handle_error(reply, key)
        return reply

    def execute_all(self, commands: Sequence[Command], key: str) -> list[Any]:
        """Send commands, all of which work on `key`; return their replies.

        Raises:
            BusError: the first error among them.
        """
        replies = self.send(commands, key=key)
        for reply in replies:
            if isinstance(reply, Exception):
                raise self.handle_error(reply, key)
        return replies

    def append(self, stream: str, fields: Fields) -> str:
        """Append an event to a stream; return its stream id."""
        if keeps_events():
            return keep(fields)
        stream_id: str = self.execute((b"XADD", stream, b"*", *flat(fields)), stream).decode()
        return stream_id

    def append_many(self, events: Iterable[tuple[str, Fields]], *, can_wait: bool = False) -> list[str | BusError]:
        """Append events to their streams in order, in one round trip; return the stream id or the error of each.

        `can_wait` is as for `send`.
        """
        if keeps_events():
            return [keep(fields) for _, fields in events]
        streams, commands = [], []
        for stream, fields in events:
            streams.append(stream)
            commands.append((b"XADD", stream, b"*", *flat(fields)))
        return [
            self.handle_error(reply, stream) if isinstance(reply, Exception) else reply.decode()
            for stream, reply in zip(streams, self.send(commands, can_wait=can_wait), strict=True)
        ]

    def check(self, keys: Iterable[str]) -> None:
        """Check that the server can run scripts, in general and on each of the keys.

        Raises:
            BusUnsupported: it can't, and waiting does not help.
        """
        commands: list[Command] = [(b"EVAL", "return 1", 0), *((b"EVAL", "return 1", 1, key) for key in keys)]
        for command, reply in zip(commands, self.send(commands), strict=True):
            if isinstance(reply, Exception):
                problem = self.handle_error(reply, str(command[-1]))
                if isinstance(problem, BusUnsupported):
                    raise problem

    def ping(self) -> bool:
        """Return whether the server replies over a new connection, even with an error."""
        return self.servers.ask("PING") is not None

    # --- Errors -------------------------------------------------------------------------------

    @property
    def is_down(self) -> bool:
        """Whether Redis did not reply last time."""
        return self._try_at is not None and not keeps_events()

    def take_turn(self, now: float | None = None) -> bool:
        """Return whether the caller should use Redis now: if it is down, one caller gets to try after each PAUSE.

        `now` is the time on the monotonic clock, in seconds.
        """
        if self._try_at is None or keeps_events():
            return True
        if now is None:
            now = time.monotonic()
        if now < self._try_at:
            return False
        self._try_at = now + PAUSE
        return True

    @contextmanager
    def handle_errors(self, key: str = "") -> Iterator[None]:
        """Handle redis-py's errors, and raise what `handle_error` returns."""
        try:
            yield
        except redis.RedisError as error:
            # Not chained: redis-py's errors may quote the URL.
            raise self.handle_error(error, key) from None

    def handle_error(self, error: Exception, key: str = "") -> BusError:
        """React to an error of redis-py's, and return the BusError to raise.

        If the server did not reply or is of no use, it counts as down. If it has become a replica, its idle
        connections are closed.

        Args:
            error: what redis-py raised, or an error reply.
            key: the key, or keys, that the command worked on; for the message.
        """
        text = str(error)
        if isinstance(error, redis.ReadOnlyError) or "READONLY" in text or text.startswith("UNBLOCKED"):
            self.servers.forget_idle()
        found = translate(error, str(self), key)
        wants_no_password = _WITHOUT_PASSWORD in text
        if (isinstance(found, BusUnsupported) or wants_no_password) and self._find_role(
            with_password=not wants_no_password
        ) == b"sentinel":
            found = BusUnsupported(
                f"Redis at {self} is a Sentinel: use redis+sentinel://host:26379/NAME, with the name of the master"
            )
        is_away = isinstance(error, (redis.ConnectionError, redis.TimeoutError))
        if (is_away and not isinstance(found, NodeUnavailable)) or isinstance(found, BusUnsupported):
            self._try_at = time.monotonic() + PAUSE
        return found

    def _find_role(self, *, with_password: bool) -> Any:
        """Return what the server calls itself, which is asked once."""
        if self._role is None:
            self._role = self.servers.ask("ROLE", with_password=with_password)
        return self._role[0] if isinstance(self._role, list) and self._role else None


@lru_cache(maxsize=16)
def get_client(url: str, timeout: float) -> RedisClient:
    """Return this process's client for `url`. The timeout is in seconds."""
    return RedisClient(url, timeout=timeout)
