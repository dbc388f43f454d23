"""What the Bus page shows: the status of the service, made ready for its template."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.contrib.admin import AdminSite
from django.utils.translation import gettext as _

from lightbus_django.models import stored_group
from lightbus_django.operating.assessment import LATE_AFTER
from lightbus_django.operating.durations import duration
from lightbus_django.operating.report import ListenerStatus, Outbox, Process, Status, Stream

from .display import SPARKLINE_HEIGHT, SPARKLINE_WIDTH, relative_time, sparkline
from .links import failed_list_url, failures_url


class Attention(NamedTuple):
    """Somebody has to act."""

    subject: str
    problems: list[str]
    hints: list[str]
    """What to do, where the problems don't say it."""
    links: list[tuple[str, str]]
    """Text and address of the page where something can be done."""


def bus_context(status: Status, site: AdminSite) -> dict[str, Any]:
    """Return the context of the template."""
    return {
        "status": status,
        "attention": list(_attention(status, site)),
        "processes": [_process(each) for each in status.processes],
        "listeners": [_listener(each, site) for each in status.listeners],
        "outboxes": [_outbox(each) for each in status.outboxes],
        "streams": [_stream(each) for each in status.streams],
        "width": SPARKLINE_WIDTH,
        "height": SPARKLINE_HEIGHT,
    }


def _attention(status: Status, site: AdminSite) -> Iterator[Attention]:
    if status.problems:
        yield Attention(_("Bus"), status.problems, [], [])
    for process in status.processes:
        if process.problems:
            yield Attention(_("Process %s") % process.name, process.problems, [], [])
    for listener in status.listeners:
        if listener.problems:
            url = _failed_url(listener, site, state="dead") if listener.dead_letters else ""
            links = [(_("Dead letters"), url), (_("Failures by cause"), failures_url(site))] if url else []
            yield Attention(_("Listener %s") % listener.name, listener.problems, list(_hints(listener)), links)


def _hints(listener: ListenerStatus) -> Iterator[str]:
    if not listener.processes:
        yield _("Start manage.py lightbus_listen, or look at why it ended.")
    elif listener.seconds_behind > LATE_AFTER and listener.paused_at is None:
        yield _("If its figures below are as usual, start more processes. If they are not, see what it has in hand.")
    if listener.paused_at is not None:
        yield _("Resume it below.")


def _process(process: Process) -> dict[str, Any]:
    return {
        "name": process.name,
        "where": f"{process.host}, pid {process.pid}",
        "version": process.code_version or process.version,
        "running": duration(round(process.seconds_running)),
        "silent": duration(round(process.seconds_silent)),
        "listeners": len(process.listeners),
        "in_hand": process.in_hand,
        "is_healthy": process.is_healthy,
    }


def _listener(listener: ListenerStatus, site: AdminSite) -> dict[str, Any]:
    minutes = listener.minutes[:-1]  # the current one is not over
    return {
        "name": listener.name,
        "group": listener.group,
        "events": listener.events,
        "waiting": _waiting(listener),
        "behind": duration(round(listener.seconds_behind)) if listener.oldest else "-",
        "in_hand": f"{listener.in_hand:,}",
        "retrying": f"{listener.retrying:,}",
        "retrying_url": _failed_url(listener, site, state="retrying") if listener.retrying else "",
        "dead": f"{listener.dead_letters:,}",
        "dead_url": _failed_url(listener, site, state="dead") if listener.dead_letters else "",
        "per_minute": f"{listener.per_minute:,.0f}",
        "points": sparkline(minutes) if any(minutes) else "",
        "plot_label": _("Handled in each minute of the last hour: %(sum)s in all, at most %(max)s in a minute")
        % {"sum": f"{sum(minutes):,}", "max": f"{max(minutes, default=0):,}"},
        "p50": "-" if listener.p50 is None else duration(listener.p50),
        "p95": "-" if listener.p95 is None else duration(listener.p95),
        "processes": listener.processes,
        "is_paused": listener.paused_at is not None,
        "paused": relative_time(listener.paused_at),
        "paused_by": listener.paused_by,
        "can_be_paused": listener.waiting is not None,
    }


def _waiting(listener: ListenerStatus) -> str:
    if listener.waiting is None:
        return _("not run yet")
    return f"{listener.waiting:,}" if listener.is_exact else _("about %s") % f"{listener.waiting:,}"


def _failed_url(listener: ListenerStatus, site: AdminSite, *, state: str) -> str:
    group = stored_group(listener.group, listener.database)
    return failed_list_url(site, listener.database, consumer_group=group, state=state)


def _outbox(outbox: Outbox) -> dict[str, Any]:
    return {
        "database": outbox.database,
        "unpublished": f"{outbox.unpublished:,}",
        "refused": f"{outbox.refused:,}",
        "behind": duration(round(outbox.seconds_behind)) if outbox.unpublished else "-",
    }


def _stream(stream: Stream) -> dict[str, Any]:
    return {
        "key": stream.key,
        "length": f"{stream.length:,}",
        "memory": "-" if stream.memory is None else _size(stream.memory),
        "held_by": stream.held_by or "-",
    }


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
