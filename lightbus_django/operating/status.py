"""The state of a service on the bus: its processes, listeners, outboxes and streams, and what needs attention."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from django.db import Error as DatabaseError
from django.db import router
from django.db.models import Count, Min, Q

from lightbus_django.bus import figures, heartbeats
from lightbus_django.bus.backlog import Backlog, read_backlog, read_positions, stream_size
from lightbus_django.bus.client import RedisClient, get_client
from lightbus_django.bus.heartbeats import Heartbeat
from lightbus_django.bus.stream_ids import id_key
from lightbus_django.bus.streams import groups
from lightbus_django.conf import Settings, format_name, get_settings
from lightbus_django.database.errors import describe, one_line, transient_errors
from lightbus_django.events.names import stream_key
from lightbus_django.events.times import as_aware
from lightbus_django.exceptions import BusError, LightbusError, NodeUnavailable, NotAStream
from lightbus_django.firing.databases import distinct_databases, has_outbox
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent, ProcessedEvent, stored_group

from .assessment import (
    LATE_AFTER,
    NOTHING,
    active_consumers,
    assess_listener,
    assess_process,
    is_fresh,
    percentiles,
    seconds_since,
)
from .durations import duration
from .report import ListenerStatus, Outbox, Process, Status, Stream
from .unclaimed_groups import find_unclaimed_groups


def read_status(now: datetime | None = None, *, service_name: str | None = None) -> Status:
    """Return the state of this service.

    A server that does not answer is among the problems; what is known from elsewhere is returned.

    Args:
        now: the current time.
        service_name: overrides the setting SERVICE_NAME.
    """
    settings = get_settings()
    service_name = format_name(service_name or settings.service_name)
    return _Reading(settings, datetime.now(UTC) if now is None else now, service_name).status()


def read_processes() -> list[Process]:
    """Return the processes of this service that have a heartbeat, without their figures.

    Raises:
        BusError
    """
    settings = get_settings()
    return _assess(_ours(get_client(settings.url, settings.redis_timeout), format_name(settings.service_name)), {})


def _ours(client: RedisClient, service_name: str) -> list[Heartbeat]:
    return [each for each in heartbeats.read(client) if each.process.service_name == service_name]


def _assess(ours: list[Heartbeat], handled: Mapping[str, Sequence[int]]) -> list[Process]:
    return [assess_process(each, ours, handled.get(each.process.process_name, NOTHING)) for each in ours]


class _Reading:
    """One look at Redis and the databases."""

    def __init__(self, settings: Settings, now: datetime, service_name: str) -> None:
        self.settings = settings
        self.now = now
        self.service_name = service_name
        self.client: RedisClient = get_client(settings.url, settings.redis_timeout)
        self.problems: list[str] = []
        self.is_redis_known = True
        self.has_read_heartbeats = False
        self.unknown_databases: list[str] = []
        self.heartbeats: list[Heartbeat] = []
        self.figures: dict[str, figures.Figures] = {}
        self.handled: dict[str, list[int]] = {}
        self.failed: dict[tuple[str, str], tuple[int, int]] = {}
        self.groups: dict[str, list[ConsumerGroup]] = defaultdict(list)
        self.fired: set[str] = set()
        self.outboxes: list[Outbox] = []
        self.streams: list[Stream] = []
        self.backlogs: dict[str, dict[str, Backlog | None]] = defaultdict(dict)
        self.unknown_streams: dict[str, set[str]] = defaultdict(set)

    def status(self) -> Status:
        for alias in distinct_databases():
            self._read_database(alias)
        listeners = sorted(registry, key=lambda listener: listener.listener_name)
        try:
            self._read_redis(listeners)
        except BusError as error:
            self.problems.append(one_line(error))
            self.is_redis_known = False
        # A listener that no process runs says so itself.
        if self.has_read_heartbeats and not listeners and not any(map(is_fresh, self.heartbeats)):
            self.problems.append("no process has a heartbeat: start lightbus_listen, which relays and deletes old rows")
        if unclaimed := find_unclaimed_groups(self.groups, self.service_name):
            self.problems.append(": ".join(unclaimed))
        names = {heartbeat.process.process_name for heartbeat in self.heartbeats}
        known = [backlog for of_streams in self.backlogs.values() for backlog in of_streams.values() if backlog]
        minutes = figures.merge(self.figures.values())
        return Status(
            service_name=self.service_name,
            bus=str(self.client),
            at=self.now,
            processes=_assess(self.heartbeats, self.handled),
            listeners=[self._listener(each) for each in listeners],
            outboxes=self.outboxes,
            streams=self.streams,
            problems=self.problems,
            minutes_p50=percentiles(minutes, 0.5),
            minutes_p95=percentiles(minutes, 0.95),
            is_redis_known=self.is_redis_known,
            unknown_databases=self.unknown_databases,
            silent_consumers=sorted(active_consumers(known) - names),
        )

    def _listener(self, listener: Listener) -> ListenerStatus:
        group = listener.group(self.service_name)
        using = listener.using or router.db_for_write(ProcessedEvent)
        return assess_listener(
            listener,
            group=group,
            using=using,
            now=self.now,
            backlogs=self.backlogs[group],
            unknown_streams=self.unknown_streams[group],
            running=self.heartbeats,
            failed=self.failed.get((using, stored_group(group, using)), (0, 0)),
            done=self.figures.get(group),
            rows=self.groups[group],
        )

    # --- Databases ----------------------------------------------------------------------------

    def _read_database(self, alias: str) -> None:
        try:
            with transient_errors(alias):
                if not has_outbox(alias):
                    return
                self._read_outbox(alias)
                rows = FailedEvent.objects.using(alias).values_list("consumer_group").order_by("consumer_group")
                counts = rows.annotate(count=Count("pk"), dead=Count("pk", filter=Q(next_attempt_at=None)))
                for group, count, dead in counts:
                    self.failed[alias, group] = count - dead, dead
                for row in ConsumerGroup.objects.using(alias).filter(service_name=self.service_name):
                    self.groups[row.consumer_group].append(row)
        except (LightbusError, DatabaseError) as error:
            self.problems.append(describe(error, alias))
            self.unknown_databases.append(alias)

    def _read_outbox(self, alias: str) -> None:
        outbox = OutboxEvent.objects.using(alias)
        self.fired |= outbox.latest_names()
        found = outbox.unpublished().aggregate(count=Count("pk"), oldest=Min("created_at"))
        refused = outbox.refused().count()
        behind = 0.0 if found["oldest"] is None else seconds_since(as_aware(found["oldest"]), self.now)
        self.outboxes.append(Outbox(database=alias, unpublished=found["count"], refused=refused, seconds_behind=behind))
        if refused:
            self.problems.append(f"{refused} events in the outbox of {alias!r} can't be published; see their errors")
        if behind > LATE_AFTER:
            self.problems.append(
                f"{found['count']} events in the outbox of {alias!r} are not published, the oldest for "
                f"{duration(behind)}: is lightbus_listen running, and does Redis answer?"
            )

    # --- Redis --------------------------------------------------------------------------------

    def _read_redis(self, listeners: Iterable[Listener]) -> None:
        wanted: dict[str, dict[str, list[str]]] = {}
        for listener in listeners:
            group = listener.group(self.service_name)
            wanted[group] = defaultdict(list)
            for event in listener.events:
                wanted[group][stream_key(event, self.settings.stream_use)].append(event)
            self.unknown_streams[group].update(wanted[group])
        with self._if_readable():
            self.heartbeats = _ours(self.client, self.service_name)
            self.has_read_heartbeats = True
            self.figures = figures.read(self.client, list(wanted), self.now)
            self.handled = figures.read_processes(self.client, self.service_name, self.now)
        streams = {stream_key(event, self.settings.stream_use) for event in self.fired}
        for group, events_of in wanted.items():
            for stream, events in events_of.items():
                with self._if_readable():
                    self.backlogs[group][stream] = read_backlog(self.client, stream, group, events)
                    self.unknown_streams[group].remove(stream)
            streams.update(events_of)
        self.streams = list(self._sizes(sorted(streams)))

    @contextmanager
    def _if_readable(self) -> Iterator[None]:
        """Go on without a stream whose node of a cluster can't be reached, or whose key is no stream; say so once."""
        try:
            yield
        except (NodeUnavailable, NotAStream) as error:
            if isinstance(error, NodeUnavailable):
                self.is_redis_known = False
            if (text := one_line(error)) not in self.problems:
                self.problems.append(text)

    def _sizes(self, keys: Iterable[str]) -> Iterator[Stream]:
        for key in keys:
            with self._if_readable():
                if (size := stream_size(self.client, key)) is None:
                    continue
                names = [group.name for group in groups(self.client, key)]
                positions = read_positions(self.client, key, names)
                behind = {id_key(at.done_with): name for name, at in positions.items()}
                held_by = behind[min(behind)] if behind and min(behind) < id_key(size.last_id) else ""
                yield Stream(key=key, length=size.length, memory=size.memory, held_by=held_by)
