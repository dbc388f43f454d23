"""The state of a service on the bus: its processes, listeners, outboxes and streams, and what needs attention."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from django.db import Error as DatabaseError
from django.db import connections, router
from django.db.models import Count, Min, Q

from lightbus_django.bus import figures, heartbeats
from lightbus_django.bus.backlog import Backlog, read_backlog, stream_size
from lightbus_django.bus.client import RedisClient, get_client
from lightbus_django.bus.heartbeats import Heartbeat, ListenerSign
from lightbus_django.bus.streams import groups
from lightbus_django.conf import Settings, format_name, get_settings
from lightbus_django.database.errors import one_line, transient_errors
from lightbus_django.events.names import stream_key
from lightbus_django.events.times import as_aware
from lightbus_django.exceptions import BusError, LightbusError
from lightbus_django.firing.databases import has_outbox
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent, ProcessedEvent

from .durations import duration
from .report import ListenerStatus, Outbox, Process, Status, Stream

LATE_AFTER = 60.0
"""Seconds after which a listener is late whose oldest event is not handled."""

FROZEN_AFTER = 3 * heartbeats.INTERVAL
"""Seconds after which a process without a heartbeat is reported."""


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


class _Reading:
    """One look at Redis and the databases."""

    def __init__(self, settings: Settings, now: datetime, service_name: str) -> None:
        self.settings = settings
        self.now = now
        self.service_name = service_name
        self.client: RedisClient = get_client(settings.url, settings.redis_timeout)
        self.problems: list[str] = []
        self.heartbeats: list[Heartbeat] = []
        self.figures: dict[str, figures.Figures] = {}
        self.failed: dict[tuple[str, str], tuple[int, int]] = {}
        self.groups: dict[str, list[ConsumerGroup]] = defaultdict(list)
        self.outboxes: list[Outbox] = []

    def status(self) -> Status:
        for alias in connections:
            self._read_database(alias)
        listeners = sorted(registry, key=lambda listener: listener.listener_name)
        backlogs: dict[str, dict[str, Backlog | None]] = {}
        streams: list[Stream] = []
        try:
            self.heartbeats = heartbeats.read(self.client)
            names = [listener.group(self.service_name) for listener in listeners]
            self.figures = figures.read(self.client, names, self.now)
            for listener in listeners:
                backlogs[listener.group(self.service_name)] = self._read_backlogs(listener)
            streams = list(self._read_streams(listeners))
        except BusError as error:
            self.problems.append(one_line(error))
        ours = [each for each in self.heartbeats if each.process.service_name == self.service_name]
        self._find_old_processes(ours, backlogs)
        self._find_unclaimed_groups(listeners)
        return Status(
            service_name=self.service_name,
            bus=str(self.client),
            at=self.now,
            processes=[self._process(each, ours) for each in ours],
            listeners=[self._listener(each, backlogs.get(each.group(self.service_name), {})) for each in listeners],
            outboxes=self.outboxes,
            streams=streams,
            problems=self.problems,
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
            self.problems.append(f"database {alias!r}: {one_line(error)}")

    def _read_outbox(self, alias: str) -> None:
        outbox = OutboxEvent.objects.using(alias)
        found = outbox.unpublished().aggregate(count=Count("pk"), oldest=Min("created_at"))
        refused = outbox.refused().count()
        behind = 0.0 if found["oldest"] is None else self._seconds_since(as_aware(found["oldest"]))
        self.outboxes.append(Outbox(database=alias, unpublished=found["count"], refused=refused, seconds_behind=behind))
        if refused:
            self.problems.append(f"{refused} events in the outbox of {alias!r} can't be published; see their errors")
        if behind > LATE_AFTER:
            self.problems.append(
                f"the oldest of {found['count']} unpublished events in the outbox of {alias!r} waits since "
                f"{duration(behind)}: is lightbus_listen running, and does Redis answer?"
            )

    # --- Redis --------------------------------------------------------------------------------

    def _streams_of(self, listener: Listener) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for event in listener.events:
            found[stream_key(event, self.settings.stream_use)].append(event)
        return found

    def _read_backlogs(self, listener: Listener) -> dict[str, Backlog | None]:
        group = listener.group(self.service_name)
        return {
            stream: read_backlog(self.client, stream, group, events)
            for stream, events in self._streams_of(listener).items()
        }

    def _read_streams(self, listeners: Iterable[Listener]) -> Iterable[Stream]:
        events = {event for listener in listeners for event in listener.events}
        for outbox in self.outboxes:
            latest = OutboxEvent.objects.using(outbox.database).order_by("-pk").values_list("event_name", flat=True)
            events.update(latest[:1000])
        for key in sorted({stream_key(event, self.settings.stream_use) for event in events}):
            size = stream_size(self.client, key)
            if size is None:
                continue
            behind = [group for group in groups(self.client, key) if group.lag or group.pending]
            held_by = max(behind, key=lambda group: (group.lag or 0) + group.pending, default=None)
            yield Stream(
                key=key, length=size.length, memory=size.memory, held_by="" if held_by is None else held_by.name
            )

    # --- What it amounts to -------------------------------------------------------------------

    def _process(self, heartbeat: Heartbeat, ours: Sequence[Heartbeat]) -> Process:
        sign = heartbeat.process
        problems = [problem for listener in sign.listeners for problem in _problems_of_thread(listener, sign.timeout)]
        problems += sign.stuck_jobs
        if heartbeat.age > FROZEN_AFTER:
            problems.append(
                f"no heartbeat for {duration(heartbeat.age)}: it was killed, is frozen, or can't reach Redis"
            )
        elif any(_are_doubles(heartbeat, other) for other in ours):
            problems.append("another process runs under the same name; they handle events twice")
        return Process(
            name=sign.process_name,
            service_name=sign.service_name,
            host=sign.host,
            pid=sign.pid,
            version=sign.version,
            code_version=sign.code_version,
            seconds_running=sign.started + heartbeat.age,
            seconds_silent=heartbeat.age,
            listeners=[listener.group for listener in sign.listeners],
            in_hand=[
                f"{listener.group}: {listener.doing} of {listener.event_id} for {duration(listener.doing_for)}"
                for listener in sign.listeners
                if listener.event_id
            ],
            problems=problems,
        )

    def _listener(self, listener: Listener, backlogs: dict[str, Backlog | None]) -> ListenerStatus:
        group = listener.group(self.service_name)
        using = listener.using or router.db_for_write(ProcessedEvent)
        known = [backlog for backlog in backlogs.values() if backlog is not None]
        oldest = min((each.oldest for each in known if each.oldest is not None), default=None)
        behind = 0.0 if oldest is None else self._seconds_since(oldest)
        retrying, dead = self.failed.get((using, group), (0, 0))
        done = self.figures.get(group)
        paused = next((row for row in self.groups.get(group, ()) if row.paused_at is not None), None)
        signs = heartbeats.of_listener(self.heartbeats, group)
        alive = [heartbeat.process.process_name for heartbeat, _ in signs if heartbeat.age <= FROZEN_AFTER]
        waiting = sum(each.waiting for each in known) if known else None
        problems = []
        if not alive and not _has_active_consumer(known):
            problems.append("no process runs it")
        if paused is not None and paused.paused_at is not None:
            since = self._seconds_since(as_aware(paused.paused_at))
            problems.append(f"paused by {paused.paused_by} for {duration(since)}; lightbus_resume ends that")
        elif behind > LATE_AFTER:
            problems.append(f"late: its oldest event was published {duration(behind)} ago")
        if dead:
            problems.append(f"{dead} dead letters: retry or discard them with lightbus_failed, or in the admin")
        return ListenerStatus(
            name=listener.listener_name,
            group=group,
            events=sorted(listener.events),
            streams=sorted(backlogs),
            database=using,
            waiting=waiting,
            is_exact=all(each.is_exact for each in known),
            in_hand=sum(each.pending for each in known),
            oldest=oldest,
            seconds_behind=behind,
            retrying=retrying,
            dead_letters=dead,
            per_minute=done.per_minute if done else 0.0,
            p50=done.percentile(0.5) if done else None,
            p95=done.percentile(0.95) if done else None,
            minutes=[minute.handled for minute in done.minutes] if done else [],
            processes=sorted(alive),
            paused_at=None if paused is None or paused.paused_at is None else as_aware(paused.paused_at),
            paused_by="" if paused is None else paused.paused_by,
            problems=problems,
        )

    def _find_old_processes(self, ours: Sequence[Heartbeat], backlogs: dict[str, dict[str, Backlog | None]]) -> None:
        """Report consumers that are active and write no heartbeat, as processes of earlier versions do."""
        names = {heartbeat.process.process_name for heartbeat in ours}
        silent: Counter[str] = Counter()
        for of_streams in backlogs.values():
            for backlog in filter(None, of_streams.values()):
                silent.update(consumer.name for consumer in backlog.consumers if _is_active(consumer.idle))
        for name in sorted(set(silent) - names):
            self.problems.append(
                f"process {name} reads events and writes no heartbeat: an earlier version, or just ended"
            )

    def _find_unclaimed_groups(self, listeners: Iterable[Listener]) -> None:
        claimed = {listener.group(self.service_name) for listener in listeners}
        for group in sorted(set(self.groups) - claimed):
            self.problems.append(
                f"no listener of this service has the consumer group {group}, so its events wait: move it to a renamed "
                f"listener, or retire it, with lightbus_retire {group}"
            )

    def _seconds_since(self, time: datetime) -> float:
        return max(0.0, (self.now - time).total_seconds())


def _problems_of_thread(sign: ListenerSign, timeout: float) -> Iterable[str]:
    if sign.problem:
        yield f"{sign.group} is interrupted: {sign.problem}"
    if sign.doing and sign.doing_for > timeout:
        event = f" of {sign.event_id}" if sign.event_id else ""
        yield f"{sign.group} hangs: {sign.doing}{event} for {duration(sign.doing_for)}"
    elif not sign.doing and sign.stepped is not None and sign.stepped > timeout:
        yield f"{sign.group} hangs: its thread last came by {duration(sign.stepped)} ago"


def _are_doubles(one: Heartbeat, other: Heartbeat) -> bool:
    same_name = one.process.process_name == other.process.process_name
    return same_name and one != other and min(one.at, other.at) > max(one.first_at, other.first_at)


def _is_active(idle: float) -> bool:
    return idle < 30.0


def _has_active_consumer(backlogs: Iterable[Backlog]) -> bool:
    return any(_is_active(consumer.idle) for backlog in backlogs for consumer in backlog.consumers)
