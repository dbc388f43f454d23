"""The Lua scripts, which Redis runs in one step. Each function returns the command that runs one of them.

Send a command with `RedisClient.execute` or over a `PipelinedConnection`. Idle times are in seconds.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

from lightbus_django.events.codec import Fields

from .wire import Command, flat


def append_confirmed(
    stream: str, confirmations: str, confirmations_with_ids: str, *, row_id: bytes, fields: Fields
) -> Command:
    """Append an event to a stream and confirm it. Replies with the number of the stream's confirmations."""
    keys = stream, confirmations, confirmations_with_ids
    return _eval("append_confirmed", keys=keys, args=(row_id, *flat(fields)))


def join(stream: str, group: str, consumer: str, *, start_id: str) -> Command:
    """Create the stream, the group and the consumer where they don't exist. Replies 1 if the group is new, else 0."""
    return _eval("join", keys=[stream], args=[group, consumer, start_id])


def leave(stream: str, group: str, consumer: str, *, placeholder: str) -> Command:
    """Delete a consumer that has nothing pending; if it is the last one, `placeholder` replaces it."""
    return _eval("xinfo", "leave", keys=[stream], args=[group, consumer, placeholder])


def claim_pending(
    stream: str, group: str, consumer: str, *, idle: float, count: int, owner: str | None = None
) -> Command:
    """Claim pending entries for a consumer without counting a delivery.

    Replies with stream id, delivery count, and names and values of the fields of each. An entry that was trimmed is not
    claimed, and has no fields.

    Args:
        idle: minimum idle time.
        count: maximum number of entries.
        owner: claim only entries of this consumer.
    """
    owners = [] if owner is None else [owner]
    return _eval("claim_pending", keys=[stream], args=[group, consumer, _milliseconds(idle), count, *owners])


def update_pending(
    stream: str,
    group: str,
    consumer: str,
    stream_ids: Iterable[str],
    *,
    owner: str | None = None,
    idle: float = 0,
    deliveries: int | None = None,
) -> Command:
    """Update entries that are pending for a consumer. Replies with the stream ids of those that still are.

    Args:
        owner: the consumer that the entries are moved to, if not `consumer`.
        idle: the idle time to set.
        deliveries: the delivery count to set; None leaves it.
    """
    count = "" if deliveries is None else deliveries
    args = group, consumer, owner or consumer, _milliseconds(idle), count, *stream_ids
    return _eval("update_pending", keys=[stream], args=args)


def progress(stream: str, group: str) -> Command:
    """Replies with what `GroupConsumer.progress` needs to know, or None if there is no such group."""
    return _eval("xinfo", "progress", keys=[stream], args=[group])


def last_id_and_time(stream: str) -> Command:
    """Replies with the last generated id, 0-0 if there is no stream, and the reply of TIME, None if that is denied."""
    return _eval("xinfo", "last_id_and_time", keys=[stream], args=[])


def trim(
    stream: str, *, keep_from: str, keep_length: int, limit: int, ahead_from: str, required_groups: Iterable[str]
) -> Command:
    """Remove entries that every group has finished with. Replies with the number of removed entries.

    Args:
        keep_from: stream id from which entries are kept.
        keep_length: number of newest entries to keep.
        limit: maximum number of entries to remove.
        ahead_from: stream id after which ids are ahead of the clock; age doesn't protect such entries.
        required_groups: while one of these groups does not exist, nothing is removed.
    """
    args: list[str | int] = [keep_from, keep_length, limit, ahead_from, *required_groups]
    return _eval("xinfo", "stream_ids", "trim", keys=[stream], args=args)


def heartbeat(key: str, index: str, *, start: str, content: bytes, expiry: int, member: str) -> Command:
    """Store the heartbeat of a process. Replies with the times of its first and of this one, and all others at `key`.

    Args:
        key: the heartbeats under the name of the process.
        index: the index of names, to which `member` is added.
        start: a text that is different for each start of a process.
        expiry: seconds until the heartbeat expires.
    """
    return _eval("heartbeat", keys=[key, index], args=[start, content, expiry, member])


def count_unread(
    stream: str, after: str, *, last: str = "+", limit: int, max_bytes: int, event_names: Iterable[str]
) -> Command:
    """Count the entries after a stream id that a listener wants.

    Replies with how many entries were looked at, how many are wanted, the id of the first of these, and whether no more
    entries follow.

    Args:
        last: the stream id up to which to look.
        limit: maximum number of entries to look at.
        max_bytes: maximum size of their content.
        event_names: the events that the listener wants.
    """
    return _eval("count_unread", keys=[stream], args=[after, last, limit, max_bytes, *event_names])


def scan_events(stream: str, after: str, *, limit: int, max_bytes: int) -> Command:
    """Look at up to `limit` entries after a stream id, fewer if their content exceeds `max_bytes`.

    Replies with the id of the last one, false at the end of the stream, and stream id, event id, API name and event
    name of each.
    """
    return _eval("scan_events", keys=[stream], args=[after, limit, max_bytes])


def delete_idle_consumers(stream: str, group: str, *, idle: float) -> Command:
    """Delete idle consumers that have nothing pending, but never the last one. Replies with their number."""
    return _eval("xinfo", "delete_idle_consumers", keys=[stream], args=[group, _milliseconds(idle)])


def move_group(stream: str, old: str, new: str, consumer: str, *, idle: float) -> Command:
    """Give the place of a group to another one, and destroy it. Replies with the number of pending entries.

    Replies -1 if a consumer of one of them was active within `idle`.

    Args:
        consumer: the consumer that gets the pending entries.
    """
    return _eval("xinfo", "move_group", keys=[stream], args=[old, new, consumer, _milliseconds(idle)])


def retire(stream: str, group: str, *, idle: float) -> Command:
    """Destroy a group all of whose consumers are idle. Replies 1 if it was destroyed."""
    return _eval("xinfo", "retire", keys=[stream], args=[group, _milliseconds(idle)])


def _eval(*names: str, keys: Sequence[str], args: Iterable[str | bytes | int]) -> Command:
    return b"EVAL", _source(*names), len(keys), *keys, *args


@cache
def _source(*names: str) -> bytes:
    """Return a script and the shared functions before it, without comments: the source is sent with each call."""
    directory = files("lightbus_django.bus") / "lua"
    text = "".join((directory / f"{name}.lua").read_text(encoding="utf-8") for name in names)
    return re.sub(r"(?m)^\s*(--.*)?\n", "", text).encode()


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
