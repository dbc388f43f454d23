"""The entries that Redis has given to one consumer and that it has not acknowledged yet, each in one state."""

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from lightbus_django.bus.group_reads import Entry

from .delivery import Delivery


class InFlight:
    """One list for each state, and the moves between them.

    - *fetched*: read from Redis; not checked yet against the start of the group.
    - *waiting*: waits for its turn. While the inbox handles events, they are the first ones of this list.
    - *set aside*: contended; goes back to waiting when its time has come.
    - *handled*: its transaction has ended, but the commit may not be durable yet.
    - *settled*: done with; acknowledged with the next command to Redis.

    Only the consumer's own thread moves entries. Other threads may read `leased`.
    """

    def __init__(self) -> None:
        self.leased: tuple[Delivery, ...] = ()
        """All deliveries that are not settled. The tuple is replaced as a whole, so any thread may read it."""
        self._fetched: list[Delivery] = []
        self._waiting: list[Delivery] = []
        self._set_aside: deque[tuple[float, Delivery]] = deque()
        self._handled: list[Delivery] = []
        self._settled: defaultdict[str, list[str]] = defaultdict(list)

    @property
    def fetched(self) -> Sequence[Delivery]:
        return self._fetched

    @property
    def waiting(self) -> Sequence[Delivery]:
        return self._waiting

    @property
    def set_aside(self) -> Sequence[tuple[float, Delivery]]:
        """The deliveries that are set aside, each with the time when it is due; the next one first."""
        return self._set_aside

    @property
    def handled(self) -> Sequence[Delivery]:
        return self._handled

    @property
    def settled(self) -> Mapping[str, Sequence[str]]:
        """Stream ids to acknowledge, by stream."""
        return self._settled

    @property
    def has_work(self) -> bool:
        """Whether there are deliveries whose turn can come now."""
        return bool(self._fetched or self._waiting)

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Add new deliveries as fetched."""
        self._fetched += deliveries
        self._update_leased()

    def skip(self, entries: Iterable[Entry]) -> None:
        """Settle new entries that the listener doesn't want."""
        self._settle(entries)

    def admit(self, *, skipped: Collection[Delivery] = ()) -> None:
        """Fetched → waiting, except for those to skip: fetched → settled."""
        if skipped:
            self._settle(delivery.entry for delivery in skipped)
            self._fetched = [delivery for delivery in self._fetched if delivery not in skipped]
        self._waiting += self._fetched
        self._fetched = []
        if skipped:
            self._update_leased()

    def put_aside(self, until: float) -> None:
        """Waiting → set aside, for the first one, until a time on the monotonic clock."""
        self._set_aside.append((until, self._waiting.pop(0)))

    def resume(self, now: float) -> None:
        """Set aside → waiting, for the first one, if its time has come."""
        if self._set_aside and now >= self._set_aside[0][0]:
            self._waiting.append(self._set_aside.popleft()[1])

    def finish(self, count: int) -> None:
        """Waiting → handled, for the first `count` of them."""
        self._handled += self._waiting[:count]
        del self._waiting[:count]

    def settle(self) -> None:
        """Handled → settled."""
        self._settle(delivery.entry for delivery in self._handled)
        self._handled = []
        self._update_leased()

    def redo(self) -> None:
        """Handled → waiting, before all others."""
        self._waiting[:0] = self._handled
        self._handled = []

    def acknowledged(self, *, but: Collection[str] = ()) -> None:
        """Forget what was settled: Redis has acknowledged it, `but` that of some streams."""
        left = {stream: self._settled[stream] for stream in but if stream in self._settled}
        self._settled.clear()
        self._settled.update(left)

    def drop_unhandled(self) -> None:
        """Forget what is fetched, waiting or set aside: other processes may have taken it."""
        self._fetched, self._waiting = [], []
        self._set_aside.clear()
        self._update_leased()

    def drop_unhandled_of(self, streams: Collection[str]) -> None:
        """Forget what is fetched, waiting or set aside of some streams, whose server can't be reached."""
        self._fetched = [each for each in self._fetched if each.entry.stream not in streams]
        self._waiting = [each for each in self._waiting if each.entry.stream not in streams]
        self._set_aside = deque(each for each in self._set_aside if each[1].entry.stream not in streams)
        self._update_leased()

    def drop_all(self) -> None:
        """Forget all that is not settled: other processes may have taken it."""
        self._handled = []
        self.drop_unhandled()

    def _settle(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._settled[entry.stream].append(entry.stream_id)

    def _update_leased(self) -> None:
        set_aside = (delivery for _, delivery in self._set_aside)
        self.leased = (*self._fetched, *self._waiting, *self._handled, *set_aside)
