"""The slot of a key in a Redis Cluster, and the key of a command."""

from functools import lru_cache

from redis.crc import key_slot

from .wire import Command

SLOTS = 16384

_WITH_SUBCOMMAND = {"XINFO", "XGROUP", "MEMORY"}


def key_of(command: Command) -> str | bytes | None:
    """Return the first key of a command; None if it has none."""
    name = command[0] if isinstance(command[0], str) else command[0].decode()
    if name == "EVAL":
        position = 3 if command[2] else len(command)
    elif name in {"XREAD", "XREADGROUP"}:
        position = command.index("STREAMS", 4 if name == "XREADGROUP" else 1) + 1
    else:
        position = 2 if name in _WITH_SUBCOMMAND else 1
    return command[position] if position < len(command) else None


@lru_cache(maxsize=4096)
def slot_of(key: str | bytes) -> int:
    """Return the slot of a key."""
    return key_slot(key.encode() if isinstance(key, str) else key)
