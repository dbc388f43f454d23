"""What a consumer has in hand: kept from other processes while it waits for its turn. And that it is alive at all."""

import logging
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Sequence

from .failures import Delivery
from .groups import SHOW_UP_INTERVAL, Member

logger = logging.getLogger("lightbus_django")


class Leases:
    """The claims of one consumer on entries that it was given and has not settled.

    One thread says what it holds, another one renews. So what they share is replaced as a whole, never changed.
    """

    def __init__(self, member: Member, timeout: float, streams: Sequence[str]) -> None:
        self.member = member
        self.timeout = timeout
        self._streams = streams
        self._show_up_at = 0.0
        self._has_ended = False
        self._lock = threading.Lock()
        self._thread = 0
        self._held: tuple[Delivery, ...] = ()
        self._in_hand: tuple[tuple[Delivery, ...], float] | None = None
        self._told: tuple[tuple[Delivery, ...], float] | None = None

    def hold(self, held: Iterable[Delivery] = ()) -> None:
        """Hold these, and nothing else."""
        self._thread = threading.get_ident()
        self._held = tuple(held)

    def end_all(self) -> None:
        """Hold nothing any more; no renewal is under way when this returns."""
        with self._lock:
            self._held = ()
            self._has_ended = True

    def begin(self, *deliveries: Delivery) -> None:
        """The thread that holds them begins to handle these, together."""
        self._in_hand = deliveries, time.monotonic()

    def end(self) -> None:
        """Nothing is being handled any more."""
        self._in_hand = None

    def renew(self, now: float) -> None:
        """Start the clock anew of what is held, but not of what is in hand if that exceeds the timeout; and show up.

        `now` is the time on the monotonic clock, in seconds.
        """
        in_hand = self._in_hand
        exceeds: tuple[Delivery, ...] = ()
        if in_hand is not None and now - in_hand[1] > self.timeout:
            exceeds = in_hand[0]
            if in_hand is not self._told:
                self._told = in_hand
                self._tell(exceeds[0], now - in_hand[1])
        with self._lock:
            by_stream = defaultdict(list)
            for delivery in self._held:
                if delivery not in exceeds:
                    by_stream[delivery.entry.stream].append(delivery.entry.stream_id)
            for stream, stream_ids in by_stream.items():
                self.member.renew(stream, stream_ids)
            if now >= self._show_up_at and not self._has_ended:
                self._show_up_at = now + SHOW_UP_INTERVAL
                self.member.show_up(self._streams)

    def _tell(self, delivery: Delivery, seconds: float) -> None:
        frame = sys._current_frames().get(self._thread)
        logger.warning(
            "%s: %s exceeds ACKNOWLEDGEMENT_TIMEOUT (%.0f s so far); "
            "another process may take it. Its handler is at\n%s",
            self.member.group,
            delivery.entry.stream_id,
            seconds,
            "".join(traceback.format_stack(frame)) if frame else "an unknown place",
        )
