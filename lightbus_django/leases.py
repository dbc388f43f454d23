"""What a consumer has in hand: kept from other processes while it waits for its turn."""

import logging
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from .groups import Entry, Member

logger = logging.getLogger("lightbus_django")


class _InHand(NamedTuple):
    stream: str
    stream_id: str
    started: float
    thread: int


class Leases:
    """The claims of one consumer on entries that it was given and has not settled.

    One thread says what it holds, another one renews. So what they share is replaced as a whole, never changed.
    """

    def __init__(self, member: Member, timeout: float) -> None:
        self.member = member
        self.timeout = timeout
        self._lock = threading.Lock()
        self._held: tuple[tuple[str, str], ...] = ()
        self._in_hand: _InHand | None = None
        self._told: _InHand | None = None

    def hold(self, entries: Iterable[tuple[str, str]]) -> None:
        """Hold these, pairs of stream and stream id, and nothing else."""
        self._held = tuple(entries)

    def end_all(self) -> None:
        """Hold nothing any more; no renewal is under way when this returns."""
        with self._lock:
            self._held = ()

    def begin(self, entry: Entry) -> None:
        """This thread begins to handle `entry`, which is held."""
        self._in_hand = _InHand(entry.stream, entry.stream_id, time.monotonic(), threading.get_ident())

    def end(self) -> None:
        """Nothing is being handled any more."""
        self._in_hand = None

    def renew(self, now: float) -> None:
        """Start the clock anew of what is held, but not of the one in hand if it exceeds the timeout.

        `now` is the time on the monotonic clock, in seconds.
        """
        by_stream = defaultdict(list)
        for stream, stream_id in self._held:
            by_stream[stream].append(stream_id)
        in_hand = self._in_hand
        if in_hand and now - in_hand.started > self.timeout:
            if in_hand.stream_id in by_stream[in_hand.stream]:
                by_stream[in_hand.stream].remove(in_hand.stream_id)
            if in_hand is not self._told:
                self._tell(in_hand, now)
        with self._lock:
            for stream, stream_ids in by_stream.items():
                if stream_ids and self._held:
                    self.member.renew(stream, stream_ids)

    def _tell(self, in_hand: _InHand, now: float) -> None:
        self._told = in_hand
        frame = sys._current_frames().get(in_hand.thread)
        logger.warning(
            "%s: %s exceeds ACKNOWLEDGEMENT_TIMEOUT (%.0f s so far); "
            "another process may take it. Its handler is at\n%s",
            self.member.group,
            in_hand.stream_id,
            now - in_hand.started,
            "".join(traceback.format_stack(frame)) if frame else "an unknown place",
        )
