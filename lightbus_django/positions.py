"""Where a consumer group stands, for it to come back there should Redis forget it."""

import logging
from collections import defaultdict

from .exceptions import GroupMissing
from .groups import Member, id_key
from .inbox import Inbox
from .listeners import Listener
from .messages import stream_key
from .streams import last_id

logger = logging.getLogger("lightbus_django")


class Positions:
    """The streams of one listener, and how far its group is in each of them."""

    def __init__(self, member: Member, listener: Listener, stream_use: str, inbox: Inbox) -> None:
        self.member = member
        self.listener = listener
        self.inbox = inbox
        self.lost = 0
        """How many events were trimmed before they were handled, as far as this process knows."""
        self._events: defaultdict[str, list[str]] = defaultdict(list)
        for event in listener.events:
            self._events[stream_key(event, stream_use)].append(event)
        self._positions: dict[str, str] = {}
        self._start_ids: dict[str, str] = {}
        self._unread_lost: dict[str, int] = {}

    @property
    def streams(self) -> list[str]:
        return list(self._events)

    def join(self) -> None:
        """Become a member of the group in each stream; make it where it is not there."""
        for stream in self._events:
            try:
                self.look(stream)
                start_id, is_known = self._positions[stream], True
            except GroupMissing:
                start_id, is_known = self._start_id(stream), False
            if self.member.join(stream, start_id):
                logger.info("%s: new consumer group of %s, which begins after %s", self.member.group, stream, start_id)
                is_known = False
            if not is_known:
                self.look(stream)

    def look(self, stream: str) -> None:
        """Remember where the group stands, and say what it lost before it was given it."""
        self._positions[stream], lost = self.member.standing(stream)
        if lost is None:
            return
        if (more := lost - self._unread_lost.get(stream, 0)) > 0:
            self.lost += more
            logger.error("%s: lost %d events of %s: they were trimmed unread", self.member.group, more, stream)
        self._unread_lost[stream] = lost

    def _start_id(self, stream: str) -> str:
        """Return where a group that is not there has to begin."""
        was_at = self._positions.get(stream)
        if was_at is None:
            # What is new is so from the first try on; the inbox may not answer yet.
            start_id = self._start_ids.setdefault(stream, self.listener.start_id)
            if start_id == "$":
                start_id = self._start_ids[stream] = last_id(self.member.transport, stream)
            if not self.inbox.has_handled(self._events[stream]):
                return start_id
        if was_at is None or id_key(last_id(self.member.transport, stream)) < id_key(was_at):
            was_at = "0"  # another stream under the same name, or nobody knows; the inbox knows what was handled
        logger.warning("%s: the group was gone from %s; made anew at %s", self.member.group, stream, was_at)
        return was_at
