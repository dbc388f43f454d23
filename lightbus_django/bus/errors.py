"""Translates errors of redis-py and of the server.

Servers and proxies may quote payloads in their errors. So only the beginning of an unknown text is shown, up to the
first character that does not belong to plain words.
"""

import re
from typing import Any

import redis

from lightbus_django.exceptions import (
    BusError,
    BusForbidden,
    BusFull,
    BusUnavailable,
    BusUnsupported,
    GroupMissing,
    NodeDown,
    NodeUnavailable,
    NotAStream,
    SlotMoved,
)

_UNAVAILABLE = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.exceptions.MasterDownError)
_UNAVAILABLE_CODES = (
    "LOADING",
    "READONLY",
    "MISCONF",
    "NOAUTH",
    "WRONGPASS",
    "MASTERDOWN",
    "NOREPLICAS",
    "UNBLOCKED",
)
_CLUSTER = (
    redis.exceptions.AskError,  # and MovedError
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.ClusterCrossSlotError,
)
_NO_CLUSTER = "This instance has cluster support disabled"
_NO_GROUP = ("The XGROUP", "NOGROUP", "no such key")
_NO_DATABASE = ("DB index", "SELECT is not allowed", "invalid DB index")
_DENIED_IN_SCRIPT = ("ACL failure in script", "The user executing the script")

# Redis before 7 says where in a script the error occurred, and then what it is.
_IN_SCRIPT = re.compile(r"(?:Error running script \(call to \w+\): )?(?:@?user_script: ?\d+: ?)+-?")
_COMMANDS = re.compile(
    r"\b(?:EVAL|XADD|XREADGROUP|XACK|XCLAIM|XPENDING|XGROUP|XINFO|XRANGE|XLEN|XTRIM|SADD|SREM|SCARD|SRANDMEMBER|SELECT|CLUSTER)\b",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"unknown|unsupported|not supported|not allowed|disabled", re.IGNORECASE)
_BEGINNING = 80
"""Number of characters in which an error says what is wrong; what was sent follows."""
_PLAIN = re.compile(r"(?:[\w ,.()/-]|(?<=\w)'(?=\w))*")


class NodeError(redis.ConnectionError):
    """One node of a cluster can't serve what it was asked. The text names it."""

    def __init__(self, text: str, *, answers: bool = False) -> None:
        """Make the error; `answers` tells whether the node answers, with a refusal."""
        super().__init__(text)
        self.answers = answers


class NodeResting(NodeError):
    """A node is known to be of no use, and was not tried."""


class Redirected(NodeError):
    """What was asked is on another node."""

    def __init__(self, text: str, asks: Any = None) -> None:
        """Make the error; `asks` is the node to ask for this key only, because its slot is moving there."""
        super().__init__(text)
        self.asks = asks


def is_unavailable(error: Exception) -> bool:
    """Whether a node of a cluster can't serve what it was asked at the moment."""
    return isinstance(error, (*_UNAVAILABLE, *_CLUSTER)) or str(error).startswith(_UNAVAILABLE_CODES)


def is_outage(error: Exception) -> bool:
    """Whether Redis can't be used, rather than one of the nodes of a cluster."""
    return isinstance(error, BusUnavailable) and not isinstance(error, NodeUnavailable)


def translate(error: Exception, server: str, key: str) -> BusError:
    """Return what an error means. `server` is the address, and `key` what the command worked on."""
    text = _IN_SCRIPT.sub("", str(error).removeprefix("ERR "), count=1).removeprefix("ERR ")
    if isinstance(error, redis.OutOfMemoryError) or text.startswith("OOM"):
        return BusFull(f"Redis at {server} is full and accepts no new events: raise its 'maxmemory', or drain it")
    if isinstance(error, NodeError):
        kinds: dict[type, type[NodeUnavailable]] = {Redirected: SlotMoved, NodeResting: NodeDown}
        found = kinds.get(type(error), NodeUnavailable)(f"Redis at {server} is not available: {text}")
        found.answers = error.answers
        return found
    if isinstance(error, _UNAVAILABLE) or text.startswith(_UNAVAILABLE_CODES):
        return BusUnavailable(f"Redis at {server} is not available: {type(error).__name__}: {text}")
    if text.startswith(_NO_GROUP):
        return GroupMissing(f"Redis at {server}: {text}")
    if isinstance(error, redis.exceptions.NoPermissionError) or text.startswith(("NOPERM", *_DENIED_IN_SCRIPT)):
        return BusForbidden(
            f"Redis at {server} denies its user access to {key!r}: {text}; grant it with ACL SETUSER: "
            "ACL LOG shows what was denied, and the operations page of the documentation lists the permissions"
        )
    if text.startswith("WRONGTYPE"):
        text = f"the key {key!r} holds something other than a stream; rename or delete it"
        return NotAStream(f"Redis at {server}: {text}")
    if reason := _unsupported(error, text):
        return BusUnsupported(f"Redis at {server} {reason}")
    plain = _PLAIN.match(text)
    text = plain[0][:_BEGINNING].strip() if plain else ""
    return BusError(f"Redis at {server}: {key}: {text}" if key else f"Redis at {server}: {text}")


def _unsupported(error: Exception, text: str) -> str:
    """Return why the server can't be used at all, or an empty string."""
    if isinstance(error, _CLUSTER):
        return "is a node of a Redis Cluster: use redis+cluster:// with some of its nodes"
    if _NO_CLUSTER in text:
        return "is not a node of a Redis Cluster: use redis://"
    if isinstance(error, redis.InvalidResponse):
        return "does not speak the Redis protocol; are host and port right?"
    if text.startswith(_NO_DATABASE):
        return "has no database with this number; for a Redis Cluster, use redis+cluster://, without a number"
    beginning = text[:_BEGINNING]
    if "command" in beginning.lower() and _REFUSED.search(beginning):
        command = _COMMANDS.search(beginning)
        name = f"the command {command[0].upper()}" if command else "a required command"
        return f"does not know {name}; its configuration or a proxy may disable it"
    return ""
