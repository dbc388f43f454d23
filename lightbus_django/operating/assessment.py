"""What heartbeats, backlogs, figures and records say of each process and each listener, and what needs attention."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from lightbus_django.bus import heartbeats
from lightbus_django.bus.backlog import Backlog
from lightbus_django.bus.consumer_group import PLACEHOLDER
from lightbus_django.bus.figures import Figures, Minute, per_minute, percentile
from lightbus_django.bus.heartbeats import Heartbeat, ListenerSign
from lightbus_django.events.times import as_aware
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.state import State
from lightbus_django.models import ConsumerGroup

from .durations import duration
from .report import ListenerStatus, Process

LATE_AFTER = 60.0
"""Seconds after which a listener is late whose oldest event is not handled."""

FROZEN_AFTER = 3 * heartbeats.INTERVAL
"""Seconds after which a process without a heartbeat is reported."""

ACTIVE_WITHIN = 30.0
"""A consumer that was active within so many seconds is that of a running process."""

NOTHING = (0,) * 60
"""The figures of a process that has handled nothing in the last hour."""

STEP_WITHIN = 15.0
"""Seconds within which the thread of an idle listener comes by, also while it waits after errors."""


def assess_process(heartbeat: Heartbeat, ours: Sequence[Heartbeat], handled: Sequence[int] = NOTHING) -> Process:
    """Return the state of a process.

    Args:
        ours: the heartbeats of all processes of the service.
        handled: how many events it handled in each of the last sixty minutes.
    """
    sign = heartbeat.process
    problems = [problem for listener in sign.listeners for problem in _problems_of_thread(listener, sign.timeout)]
    problems += sign.stuck_jobs
    if heartbeat.age > FROZEN_AFTER:
        problems.append(f"no heartbeat for {duration(heartbeat.age)}: it was killed, is frozen, or can't reach Redis")
    elif doubles := [other.process for other in ours if heartbeats.are_doubles(heartbeat, other)]:
        others = ", ".join(f"{other.host} with pid {other.pid}" for other in doubles)
        problems.append(f"another process runs under the same name, on {others}; they handle events twice")
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
        events_in_hand=[listener.event_id for listener in sign.listeners if listener.event_id],
        per_minute=per_minute(handled),
        minutes=list(handled),
        paused=[listener.group for listener in sign.listeners if listener.state == State.PAUSED.value],
        problems=problems,
    )


def _problems_of_thread(sign: ListenerSign, timeout: float) -> Iterator[str]:
    if sign.problem:
        yield f"{sign.group} is interrupted: {sign.problem}"
    if sign.doing and sign.doing_for > timeout:
        event = f" of {sign.event_id}" if sign.event_id else ""
        yield f"{sign.group} hangs: {sign.doing}{event} for {duration(sign.doing_for)}"
    elif not sign.doing and sign.stepped is not None and sign.stepped > max(timeout, STEP_WITHIN):
        yield f"{sign.group} hangs: its thread last came by {duration(sign.stepped)} ago"


def assess_listener(
    listener: Listener,
    *,
    group: str,
    using: str,
    now: datetime,
    backlogs: Mapping[str, Backlog | None],
    unknown_streams: Collection[str],
    running: Sequence[Heartbeat],
    failed: tuple[int, int],
    done: Figures | None,
    rows: Collection[ConsumerGroup],
) -> ListenerStatus:
    """Return the state of a listener.

    Args:
        group: its consumer group.
        using: its database.
        backlogs: what its group has ahead of it, by stream; None if it has no group there.
        unknown_streams: those of its streams that could not be read, which `backlogs` lacks.
        running: the heartbeats of the processes of the service.
        failed: the numbers of its retries and of its dead letters.
        done: its figures; None if Redis could not be asked.
        rows: what the database knows of its group.
    """
    known = [backlog for backlog in backlogs.values() if backlog is not None]
    oldest = min((each.oldest for each in known if each.oldest is not None), default=None)
    behind = 0.0 if oldest is None else seconds_since(oldest, now)
    retrying, dead = failed
    paused = next((row for row in rows if row.paused_at is not None), None)
    paused_at = None if paused is None or paused.paused_at is None else as_aware(paused.paused_at)
    processes = [
        heartbeat.process.process_name for heartbeat, _ in heartbeats.of_listener(running, group) if is_fresh(heartbeat)
    ]
    is_running = bool(processes or active_consumers(known)) or done is None
    problems = []
    if not is_running:
        problems.append("no process runs it")
    if paused is not None and paused_at is not None:
        since = duration(seconds_since(paused_at, now))
        problems.append(f"paused by {paused.paused_by} for {since}; lightbus_resume ends that")
    elif behind > LATE_AFTER:
        pace = f"; it handles {done.per_minute:,.0f} a minute" if done else ""
        problems.append(f"late: its oldest event was published {duration(behind)} ago{pace}")
    if dead:
        problems.append(f"{dead} dead letters: retry or discard them with lightbus_failed, or in the admin")
    return ListenerStatus(
        name=listener.listener_name,
        group=group,
        events=sorted(listener.events),
        streams=sorted({*backlogs, *unknown_streams}),
        unknown_streams=sorted(unknown_streams),
        database=using,
        waiting=sum(each.waiting for each in known) if known and not unknown_streams else None,
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
        minutes_failed=[minute.failed for minute in done.minutes] if done else [],
        minutes_p50=percentiles(done.minutes, 0.5) if done else [],
        minutes_p95=percentiles(done.minutes, 0.95) if done else [],
        processes=sorted(set(processes)),
        is_running=is_running,
        paused_at=paused_at,
        paused_by="" if paused is None else paused.paused_by,
        problems=problems,
    )


def percentiles(minutes: Iterable[Minute], share: float) -> list[float | None]:
    """Return the latency that this share of the events of each minute keeps to, in seconds; None if there are none."""
    return [percentile(minute.latencies, share) for minute in minutes]


def is_fresh(heartbeat: Heartbeat) -> bool:
    """Return whether a process has written its heartbeat lately."""
    return heartbeat.age <= FROZEN_AFTER


def active_consumers(backlogs: Collection[Backlog]) -> set[str]:
    """Return the names of the consumers that were active lately."""
    active = {each.name for backlog in backlogs for each in backlog.consumers if each.idle < ACTIVE_WITHIN}
    return active - {PLACEHOLDER}


def seconds_since(time: datetime, now: datetime) -> float:
    """Return the seconds from a time until now, 0 if it is in the future."""
    return max(0.0, (now - time).total_seconds())
