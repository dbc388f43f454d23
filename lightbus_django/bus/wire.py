"""Commands and replies as they travel over a connection."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import redis
from hiredis import pack_command

from lightbus_django.events.chunks import chunks
from lightbus_django.events.codec import Fields

Command = tuple[Any, ...]
"""The name of a command and its arguments: str, bytes or int."""

UNANSWERED_SIZE = 1024 * 1024
"""Bytes of commands that are sent before their replies are read; a single larger command is sent alone."""

PIECE_SIZE = 64 * 1024
"""Bytes that must be sent within the timeout."""


def flat(fields: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """Return names and values in turn, as commands take them."""
    return chain.from_iterable(fields.items())


def as_dict(flat: Sequence[Any]) -> dict[str, Any]:
    """Return names and values in turn, as Redis replies with them, as a dict."""
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def as_fields(flat: Sequence[bytes] | None) -> Fields:
    """Return the fields of an entry; none if it was trimmed."""
    return dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}


def packed(commands: Iterable[Command]) -> bytes:
    """Return commands in the Redis protocol."""
    return b"".join(map(pack_command, commands))


def exchange(connection: Any, commands: Sequence[Command], replies: list[Any]) -> None:
    """Send the commands that have no reply yet, and append their replies. An error reply is a redis-py exception."""
    for _ in exchanging(connection, commands, replies):
        pass


def exchanging(connection: Any, commands: Sequence[Command], replies: list[Any]) -> Iterator[None]:
    """Do what `exchange` does in steps: each sends some commands, after the replies to those of the step before.

    The timeout applies to each piece that is sent and to each reply. So only a limited number of bytes is sent before
    replies are read.
    """
    rest = map(pack_command, commands[len(replies) :])
    for some in chunks(rest, len, count=len(commands), size=UNANSWERED_SIZE):
        data = memoryview(b"".join(some))
        connection.send_packed_command(data[first : first + PIECE_SIZE] for first in range(0, len(data), PIECE_SIZE))
        yield
        for _ in some:
            try:
                replies.append(connection.read_response())
            except redis.ResponseError as error:
                replies.append(error)


def ask(pool: Any, command: str, *, with_password: bool = True) -> Any:
    """Send a command to the server of a pool over a new connection; return the reply, or None if there is none.

    An error reply is returned as an exception. A server that is loading its data counts as not replying.
    """
    options = {**pool.connection_kwargs, "db": 0}  # a Sentinel knows no SELECT
    if not with_password:
        options |= {"username": None, "password": None}
    connection = pool.connection_class(**options)
    try:
        connection.send_command(command)
        return connection.read_response()
    except (redis.ResponseError, redis.InvalidResponse, redis.AuthenticationError) as error:
        return error
    except redis.RedisError:
        return None
    finally:
        connection.disconnect()
