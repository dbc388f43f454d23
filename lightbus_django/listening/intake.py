"""Which of the entries that a consumer has read are for its listener."""

from collections.abc import Iterable

from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.bus.group_reads import Entry
from lightbus_django.events.codec import NOOP

from .delivery import Delivery
from .in_flight import InFlight
from .listener import Listener
from .offsets import Offsets
from .republished import published_before


class Intake:
    """Adds what a listener wants to what is in flight, and settles the rest."""

    def __init__(
        self, listener: Listener, group_consumer: GroupConsumer, in_flight: InFlight, offsets: Offsets
    ) -> None:
        self._listener = listener
        self._group_consumer = group_consumer
        self._in_flight = in_flight
        self._offsets = offsets

    def receive(self, entries: Iterable[Entry]) -> None:
        """Take new entries: those that the listener wants are fetched, the others are settled."""
        wanted, others = [], []
        for entry in entries:
            fields = entry.fields
            if fields and fields != NOOP and self._listener.wants(fields):
                wanted.append(Delivery.of(entry))
            else:
                others.append(entry)
                if not fields:
                    self._offsets.report_lost(entry)
        self._in_flight.skip(others)
        self._in_flight.add(wanted)

    def admit(self) -> None:
        """Let what is fetched wait for its turn, except for events that are older than the group.

        Raises:
            BusError: Redis can't tell; call again after a while.
        """
        starts, fetched = self._offsets.records.starts, self._in_flight.fetched
        self._in_flight.admit(skipped=published_before(starts, fetched, self._group_consumer))
