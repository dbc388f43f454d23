"""One Redis server: the connection, its errors, and what goes on the bus.

Nothing but this room, `line`, `groups`, `streams` and `notes` speaks to Redis.
"""

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import Any

import redis
from hiredis import pack_command
from redis.backoff import NoBackoff
from redis.retry import Retry

from .chunks import chunks
from .conf import URL_HELP
from .exceptions import BusError, BusForbidden, BusUnavailable, ConfigurationError, GroupMissing
from .messages import Fields

logger = logging.getLogger("lightbus_django")

PAUSE = 4.0
"""Seconds for which a server that did not answer is not asked again by those who can wait."""

MAX_CONNECTIONS = 10_000
"""More than a process needs: each thread that listens, or fires, has one. redis-py by itself allows 100."""

UNANSWERED_SIZE = 1024 * 1024
"""Bytes of commands that are sent before their replies are awaited, unless one command alone has more."""

PIECE_SIZE = 64 * 1024
"""Bytes that have to be sent within the timeout."""

_UNAVAILABLE = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    redis.exceptions.ClusterDownError,
)
_UNAVAILABLE_CODES = (
    "LOADING",
    "READONLY",
    "OOM",
    "MISCONF",
    "NOAUTH",
    "WRONGPASS",
    "MASTERDOWN",
    "NOREPLICAS",
    "UNBLOCKED",
)
_DENIED_IN_SCRIPT = ("ACL failure in script", "The user executing the script")


class Transport:
    """One Redis server.

    Raises, from every method: BusUnavailable if Redis can't be reached in time or can't serve,
    BusError if it answers with another error.
    """

    def __init__(self, url: str, *, timeout: float, retries: int = 1) -> None:
        """Connect when first used.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            timeout: seconds that a connection or an answer may take.
            retries: how often a command is sent again over a new connection when its own turns out
                to be broken. A reader takes 0: what the broken one was sent needs a look.
        """
        self.url = url
        # Any, for redis-py's annotations speak of its asynchronous client in the same breath.
        try:
            self.client: Any = redis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                protocol=2,
                max_connections=MAX_CONNECTIONS,
                # Timeouts are not tried again.
                retry=Retry(NoBackoff(), retries, supported_errors=(redis.ConnectionError,)),
            )
            self.client.connection_pool.make_connection()
            options = self.client.connection_pool.connection_kwargs
            if options.get("protocol") != 2 or options.get("decode_responses"):  # which change the answers
                raise TypeError("'protocol' or 'decode_responses'")
        except ValueError:
            raise ConfigurationError(URL_HELP) from None  # its text may hold a part of the password
        except TypeError as error:
            names = ", ".join(re.findall(r"'\w+'", str(error)))
            raise ConfigurationError(f'settings.LIGHTBUS["URL"] has an option that is not for it: {names}') from None
        self._try_at: float | None = None

    def __str__(self) -> str:
        """The address, without user and password."""
        where = self.client.connection_pool.connection_kwargs
        if "path" in where:
            return f"unix://{where['path']}"
        scheme = self.url.partition("://")[0]
        return f"{scheme}://{where.get('host', 'localhost')}:{where.get('port', 6379)}/{where.get('db') or 0}"

    def close(self) -> None:
        self.client.close()

    # --- Publishing ---------------------------------------------------------------------------

    def publish(self, stream: str, fields: Fields) -> str:
        """Append one event; return its stream id."""
        (reply,) = self.send([(b"XADD", stream, b"*", *flat(fields))])
        if isinstance(reply, Exception):
            raise self.translate(reply, stream)
        stream_id: str = reply.decode()
        return stream_id

    def publish_many(self, events: Iterable[tuple[str, Fields]]) -> list[str | BusError]:
        """Append events in order, in one round trip; return the stream id or the error of each."""
        streams, commands = [], []
        for stream, fields in events:
            streams.append(stream)
            commands.append((b"XADD", stream, b"*", *flat(fields)))
        return [
            self.translate(reply, stream) if isinstance(reply, Exception) else reply.decode()
            for stream, reply in zip(streams, self.send(commands), strict=True)
        ]

    def send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands in few goes; return the reply to each, an error of Redis's as one of redis-py's.

        By a connection of the pool: redis-py's commands and pipelines cost more than all else that an
        event takes, for options that are not used here.
        """
        pool = self.client.connection_pool
        replies: list[Any] = []
        try:
            connection = pool.get_connection()
            try:
                connection.retry.call_with_retry(
                    lambda: _exchange(connection, commands, replies), lambda error: connection.disconnect()
                )
            except BaseException:
                connection.disconnect()  # lest who comes next gets the replies to these
                raise
            finally:
                pool.release(connection)
        except redis.RedisError as error:
            raise self._failure(error) from None
        self._try_at = None
        return replies

    def run(self, script: str, key: str, *args: str | int) -> Any:
        """Run a script, in Lua, on one key; return its reply."""
        (reply,) = self.send([(b"EVAL", script, 1, key, *args)])
        if isinstance(reply, Exception):
            raise self.translate(reply, key)
        return reply

    # --- Errors -------------------------------------------------------------------------------

    @property
    def is_down(self) -> bool:
        """Whether Redis did not answer when it was asked last."""
        return self._try_at is not None

    def is_worth_trying(self, now: float | None = None) -> bool:
        """Whether Redis answers as far as known; else True for one caller after each pause, who shall try.

        `now` is the time on the monotonic clock, in seconds.
        """
        if self._try_at is None:
            return True
        if now is None:
            now = time.monotonic()
        if now < self._try_at:
            return False
        self._try_at = now + PAUSE
        return True

    @contextmanager
    def errors(self, what: str = "") -> Iterator[None]:
        """Translate redis-py's errors; `what` is the key that was worked on."""
        try:
            yield
        except redis.RedisError as error:
            # Not chained: redis-py's own errors may quote the URL.
            raise self._failure(error, what) from None

    def _failure(self, error: redis.RedisError, what: str = "") -> BusError:
        """Translate an error that ended a call, and remember a server that did not answer."""
        if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
            self._try_at = time.monotonic() + PAUSE
        return self.translate(error, what)

    def translate(self, error: Exception, what: str) -> BusError:
        """Return what an error of redis-py's means here; `what` is the key that was worked on."""
        text = str(error)
        if isinstance(error, redis.ReadOnlyError) or text.startswith("UNBLOCKED"):
            # After a failover the address may stand for another server, which only a new connection reaches.
            # Those that other threads have in use are theirs to give up.
            self.client.connection_pool.disconnect(inuse_connections=False)
        if isinstance(error, _UNAVAILABLE) or text.startswith(_UNAVAILABLE_CODES):
            return BusUnavailable(f"Redis at {self} is not available: {type(error).__name__}: {text}")
        if text.startswith("The XGROUP") or "NOGROUP" in text or "no such key" in text:
            return GroupMissing(f"Redis at {self}: {text}")
        if isinstance(error, redis.exceptions.NoPermissionError) or text.startswith(_DENIED_IN_SCRIPT):
            return BusForbidden(
                f"Redis at {self} denies its user something with {what!r}: {text}; docs/operations.md lists what to "
                "grant, and Redis's command ACL LOG what was denied"
            )
        if "WRONGTYPE" in text:
            return BusError(
                f"Redis at {self}: the key {what!r} holds something other than a stream; rename or delete it"
            )
        return BusError(f"Redis at {self}: {what}: {text}" if what else f"Redis at {self}: {text}")


def flat(fields: Fields) -> Iterator[bytes]:
    """Return names and values in turn, as commands take them."""
    return chain.from_iterable(fields.items())


def packed(commands: Iterable[Sequence[Any]]) -> bytes:
    """Return commands as they go over the wire."""
    return b"".join(pack_command(tuple(command)) for command in commands)


def _exchange(connection: Any, commands: Sequence[tuple[Any, ...]], replies: list[Any]) -> None:
    """Send the commands that have no reply yet, and add their replies.

    The timeout counts for each piece that is sent, and for each reply; so no more is on its way than takes a moment.
    """
    rest = map(pack_command, commands[len(replies) :])
    for some in chunks(rest, len, count=len(commands), size=UNANSWERED_SIZE):
        data = memoryview(b"".join(some))
        connection.send_packed_command(data[first : first + PIECE_SIZE] for first in range(0, len(data), PIECE_SIZE))
        for _ in some:
            try:
                replies.append(connection.read_response())
            except redis.ResponseError as error:
                replies.append(error)


@lru_cache(maxsize=16)
def get_transport(url: str, timeout: float) -> Transport:
    """Return the process's Transport for `url`; `timeout` as Transport takes it."""
    return Transport(url, timeout=timeout)
