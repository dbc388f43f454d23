"""How far a consumer group is in a stream, and what it has lost."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from .stream_ids import id_key, previous_id


class GroupProgress(NamedTuple):
    """How far a group is in a stream."""

    position: str
    """The stream id up to which everything is acknowledged."""

    lost: int | None
    """Number of entries that were trimmed before the group read them, as far as Redis knows; None if it can't tell.

    It is too large after a failover of Redis 7.0, whose replicas have an old number of what the group has read.
    """

    start: str
    """The stream id of the first entry; if there is none, the last one that was generated."""


def group_progress(reply: Sequence[Any]) -> GroupProgress:
    """Return what the script `progress` has replied."""
    oldest, *ids, entries_read, length, entries_added = reply
    delivered, last, first = (stream_id.decode() for stream_id in ids)
    position = previous_id(oldest.decode()) if oldest else delivered
    lost = None
    if entries_read is not None and entries_added is not None:
        counts = {"entries_read": entries_read, "length": length, "entries_added": entries_added}
        lost = _lost(delivered, first, last, **counts)
    return GroupProgress(position, lost, first if length else last)


def _lost(delivered: str, first: str, last: str, *, entries_read: int, length: int, entries_added: int) -> int | None:
    """Return how many entries were removed from a stream before the group read them.

    This is known in two cases; otherwise return None. If the group has read everything, it is the difference between
    the counters, which Redis before 7.4 never corrects. If the first entry is unread, all missing entries were lost
    except those that the group has read.
    """
    if id_key(delivered) >= id_key(last):
        return max(0, entries_added - entries_read)
    if length and id_key(first) <= id_key(delivered):
        return None
    return max(0, entries_added - length - entries_read)
