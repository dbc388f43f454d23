"""What an error of redis-py's, or of the server, means here.

Servers and proxies quote in their errors what they were sent, and that may be a payload. So of a text that is not known
only the beginning is told, up to the first sign that plain words don't have.
"""

import re
from typing import Any

import redis

from lightbus_django.exceptions import BusError, BusForbidden, BusFull, BusUnavailable, BusUnsupported, GroupMissing

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
_NO_GROUP = ("The XGROUP", "NOGROUP", "no such key")
_NO_DATABASE = ("DB index", "SELECT is not allowed", "invalid DB index")
_DENIED_IN_SCRIPT = ("ACL failure in script", "The user executing the script")

# Redis before 7 says where in a script the error came about; then comes the error itself.
_IN_SCRIPT = re.compile(r"(?:Error running script \(call to \w+\): )?(?:@?user_script: ?\d+: ?)+-?")
_COMMANDS = re.compile(
    r"\b(?:EVAL|XADD|XREADGROUP|XACK|XCLAIM|XPENDING|XGROUP|XINFO|XRANGE|XLEN|XTRIM|SADD|SREM|SCARD|SRANDMEMBER|SELECT)\b",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"unknown|unsupported|not supported|not allowed|disabled", re.IGNORECASE)
_BEGINNING = 80
"""Characters of a text in which it says what is the matter; what was sent follows."""
_PLAIN = re.compile(r"(?:[\w ,.()/-]|(?<=\w)'(?=\w))*")


def translate(error: Exception, server: str, what: str) -> BusError:
    """Return what `error` means; `server` is the address, and `what` the key that was worked on."""
    text = _IN_SCRIPT.sub("", str(error).removeprefix("ERR "), count=1).removeprefix("ERR ")
    if isinstance(error, redis.OutOfMemoryError) or text.startswith("OOM"):
        return BusFull(f"Redis at {server} is full and takes nothing new: raise its 'maxmemory', or let it be read")
    if isinstance(error, _UNAVAILABLE) or text.startswith(_UNAVAILABLE_CODES):
        return BusUnavailable(f"Redis at {server} is not available: {type(error).__name__}: {text}")
    if text.startswith(_NO_GROUP):
        return GroupMissing(f"Redis at {server}: {text}")
    if isinstance(error, redis.exceptions.NoPermissionError) or text.startswith(("NOPERM", *_DENIED_IN_SCRIPT)):
        return BusForbidden(
            f"Redis at {server} denies its user something with {what!r}: {text}; grant it with ACL SETUSER: "
            "ACL LOG shows what was denied, and the operations page of the documentation lists the rights"
        )
    if text.startswith("WRONGTYPE"):
        return BusError(f"Redis at {server}: the key {what!r} holds something other than a stream; rename or delete it")
    if why := _unsupported(error, text):
        return BusUnsupported(f"Redis at {server} {why}")
    plain = _PLAIN.match(text)
    text = plain[0][:_BEGINNING].strip() if plain else ""
    return BusError(f"Redis at {server}: {what}: {text}" if what else f"Redis at {server}: {text}")


def _unsupported(error: Exception, text: str) -> str:
    """Return what the server is or lacks that makes it of no use here; nothing if it is not that."""
    if isinstance(error, _CLUSTER):
        return "is a node of a Redis Cluster, which is not supported yet"
    if isinstance(error, redis.InvalidResponse):
        return "does not speak the protocol of Redis; are host and port right?"
    if text.startswith(_NO_DATABASE):
        return "has no database of this number; a node of a Redis Cluster, which is not supported yet, has none but 0"
    beginning = text[:_BEGINNING]
    if "command" in beginning.lower() and _REFUSED.search(beginning):
        command = _COMMANDS.search(beginning)
        name = f"the command {command[0].upper()}" if command else "a command that is needed"
        return f"does not know {name}, or its configuration, or a proxy in front of it, disables it"
    return ""


def ask(pool: Any, command: str, *, with_password: bool = True) -> Any:
    """Send a command over a new connection to the server of a pool; return the reply, None if there is none.

    An error of the server's is a reply; but while it loads its data it does not reply.
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
