"""Commands and replies as they go over a connection."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import redis
from hiredis import pack_command


def flat(fields: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """Return names and values in turn, as commands take them."""
    return chain.from_iterable(fields.items())


def packed(commands: Sequence[Sequence[Any]]) -> bytes:
    """Return commands as they go over the wire."""
    return b"".join(pack_command(tuple(command)) for command in commands)


def exchange(connection: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send commands in one go; return the reply to each, an error of the server's as one of redis-py's."""
    connection.send_packed_command([packed(commands)])
    replies = []
    for _ in commands:
        try:
            replies.append(connection.read_response())
        except redis.ResponseError as error:
            replies.append(error)
    return replies
