"""One Redis server: the connection, its errors, and what goes on the bus.

Nothing but this room, `line`, `groups`, `streams` and `notes` speaks to Redis.
"""

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from lightbus_django.conf import URL_HELP
from lightbus_django.events.codec import Fields
from lightbus_django.exceptions import BusError, BusUnsupported, ConfigurationError

from .errors import ask, translate
from .sandbox import NO_BUS, keep, keeps_events
from .wire import exchange, flat

logger = logging.getLogger("lightbus_django")

PAUSE = 4.0
"""Seconds for which a server that did not answer is not asked again by those who can wait."""

MAX_CONNECTIONS = 10_000
"""More than a process needs: each thread that listens, or fires, has one. redis-py by itself allows 100."""

_WITHOUT_PASSWORD = "without any password"  # noqa: S105


class RedisClient:
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
            self._redis_py: Any = redis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                protocol=2,
                max_connections=MAX_CONNECTIONS,
                # Timeouts are not tried again.
                retry=Retry(NoBackoff(), retries, supported_errors=(redis.ConnectionError,)),
            )
            self._redis_py.connection_pool.make_connection()
            options = self._redis_py.connection_pool.connection_kwargs
            if options.get("protocol") != 2 or options.get("decode_responses"):  # which change the answers
                raise TypeError("'protocol' or 'decode_responses'")
        except ValueError:
            raise ConfigurationError(URL_HELP) from None  # its text may hold a part of the password
        except TypeError as error:
            names = ", ".join(re.findall(r"'\w+'", str(error)))
            raise ConfigurationError(f'settings.LIGHTBUS["URL"] has an option that is not for it: {names}') from None
        self._try_at: float | None = None
        self._role: Any = None

    def __str__(self) -> str:
        """The address, without user and password."""
        where = self._redis_py.connection_pool.connection_kwargs
        if "path" in where:
            return f"unix://{where['path']}"
        scheme = self.url.partition("://")[0]
        return f"{scheme}://{where.get('host', 'localhost')}:{where.get('port', 6379)}/{where.get('db') or 0}"

    def close(self) -> None:
        self._redis_py.close()

    @property
    def redis_py(self) -> Any:
        """redis-py's client.

        Raises:
            ConfigurationError: this is a test that has not asked for a real bus.
        """
        if keeps_events():
            raise ConfigurationError(NO_BUS)
        return self._redis_py

    # --- Publishing ---------------------------------------------------------------------------

    def publish(self, stream: str, fields: Fields) -> str:
        """Append one event; return its stream id."""
        if keeps_events():
            return keep(fields)
        (reply,) = self.send([(b"XADD", stream, b"*", *flat(fields))])
        if isinstance(reply, Exception):
            raise self.translate(reply, stream)
        stream_id: str = reply.decode()
        return stream_id

    def publish_many(self, events: Iterable[tuple[str, Fields]]) -> list[str | BusError]:
        """Append events in order, in one round trip; return the stream id or the error of each."""
        if keeps_events():
            return [keep(fields) for _, fields in events]
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
        pool = self.redis_py.connection_pool
        replies: list[Any] = []
        try:
            connection = pool.get_connection()
            try:
                connection.retry.call_with_retry(
                    lambda: exchange(connection, commands, replies), lambda error: connection.disconnect()
                )
            except BaseException:
                connection.disconnect()  # or the next user gets the replies to these
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

    def check(self, keys: Iterable[str]) -> None:
        """Run an empty script, and one on each key.

        Raises:
            BusUnsupported: the server can't do that, and waiting does not help.
        """
        commands = [(b"EVAL", "return 1", 0), *((b"EVAL", "return 1", 1, key) for key in keys)]
        for command, reply in zip(commands, self.send(commands), strict=True):
            if isinstance(reply, Exception):
                problem = self.translate(reply, str(command[-1]))
                if isinstance(problem, BusUnsupported):
                    raise problem

    def answers(self) -> bool:
        """Whether the server answers, be it with an error."""
        return ask(self.redis_py.connection_pool, "PING") is not None

    # --- Errors -------------------------------------------------------------------------------

    @property
    def is_down(self) -> bool:
        """Whether Redis did not answer when it was asked last."""
        return self._try_at is not None and not keeps_events()

    def is_worth_trying(self, now: float | None = None) -> bool:
        """Whether Redis answers as far as known; else True for one caller after each pause, who shall try.

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
            self._pause_tries()
        return self.translate(error, what)

    def translate(self, error: Exception, what: str) -> BusError:
        """Return what an error of redis-py's means here; `what` is the key that was worked on."""
        text = str(error)
        if isinstance(error, redis.ReadOnlyError) or "READONLY" in text or text.startswith("UNBLOCKED"):
            # After a failover the address may stand for another server, which only a new connection reaches.
            # Those that other threads have in use are theirs to give up.
            self.redis_py.connection_pool.disconnect(inuse_connections=False)
        found = translate(error, str(self), what)
        is_refused = isinstance(found, BusUnsupported) or _WITHOUT_PASSWORD in text
        if is_refused and self._is_sentinel(with_password=_WITHOUT_PASSWORD not in text):
            found = BusUnsupported(
                f"Redis at {self} is a Sentinel, which is not supported yet: name the address of the Redis itself"
            )
        if isinstance(found, BusUnsupported):
            self._pause_tries()
        return found

    def _pause_tries(self) -> None:
        self._try_at = time.monotonic() + PAUSE

    def _is_sentinel(self, *, with_password: bool) -> bool:
        if self._role is None:
            self._role = ask(self.redis_py.connection_pool, "ROLE", with_password=with_password)
        return isinstance(self._role, list) and self._role[:1] == [b"sentinel"]


@lru_cache(maxsize=16)
def get_client(url: str, timeout: float) -> RedisClient:
    """Return the process's RedisClient for `url`; `timeout` as RedisClient takes it."""
    return RedisClient(url, timeout=timeout)
