"""Commands and replies as they go over a connection."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import redis
from hiredis import pack_command

from lightbus_django.events.chunks import chunks

UNANSWERED_SIZE = 1024 * 1024
"""Bytes of commands that are sent before their replies are awaited, unless one command alone has more."""

PIECE_SIZE = 64 * 1024
"""Bytes that have to be sent within the timeout."""


def flat(fields: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """Return names and values in turn, as commands take them."""
    return chain.from_iterable(fields.items())


def packed(commands: Iterable[Sequence[Any]]) -> bytes:
    """Return commands as they go over the wire."""
    return b"".join(pack_command(tuple(command)) for command in commands)


def exchange(connection: Any, commands: Sequence[tuple[Any, ...]], replies: list[Any]) -> None:
    """Send the commands that have no reply yet, and add their replies; an error is one of redis-py's.

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
