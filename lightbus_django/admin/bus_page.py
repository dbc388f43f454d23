"""What the Bus page shows: the status of the service, made ready for its template."""

from collections.abc import Sequence
from typing import Any

from django.contrib.admin import AdminSite
from django.utils.translation import gettext as _

from lightbus_django.operating.durations import duration
from lightbus_django.operating.report import ListenerStatus, Outbox, Process, Status, Stream

from .attention import attention, failed_events_of
from .display import SPARKLINE_HEIGHT, SPARKLINE_WIDTH, relative_time, sparkline
from .links import outbox_url
from .plots import HEIGHT, WIDTH, last_hour


def bus_context(status: Status, site: AdminSite, *, may_view_events: bool, plots_of: str = "") -> dict[str, Any]:
    """Return the context of the template.

    Args:
        may_view_events: whether the user may see the pages of events.
        plots_of: the consumer group whose plots are shown; empty for those of all.
    """
    return {
        "status": status,
        "attention": list(attention(status, site, may_view_events=may_view_events)),
        "processes": [_process(each) for each in status.processes],
        "listeners": [_listener(each, site) for each in status.listeners],
        "outboxes": [_outbox(each, site) for each in status.outboxes],
        "streams": [_stream(each) for each in status.streams],
        "width": SPARKLINE_WIDTH,
        "height": SPARKLINE_HEIGHT,
        "last_hour": last_hour(status, plots_of),
        "plot_width": WIDTH,
        "plot_height": HEIGHT,
    }


def _process(process: Process) -> dict[str, Any]:
    return {
        "name": process.name,
        "where": f"{process.host}, pid {process.pid}",
        "version": process.code_version or process.version,
        "running": duration(round(process.seconds_running)),
        "silent": duration(round(process.seconds_silent)),
        "listeners": len(process.listeners),
        "in_hand": process.in_hand,
        "per_minute": f"{process.per_minute:,.0f}",
        **_sparkline(process.minutes),
        "is_healthy": process.is_healthy,
    }


def _listener(listener: ListenerStatus, site: AdminSite) -> dict[str, Any]:
    return {
        "name": listener.name,
        "group": listener.group,
        "events": listener.events,
        "waiting": _waiting(listener),
        "behind": duration(round(listener.seconds_behind)) if listener.oldest else "-",
        "in_hand": _("unknown") if listener.unknown_streams else f"{listener.in_hand:,}",
        "retrying": f"{listener.retrying:,}",
        "retrying_url": failed_events_of(listener, site, state="retrying") if listener.retrying else "",
        "dead": f"{listener.dead_letters:,}",
        "dead_url": failed_events_of(listener, site, state="dead") if listener.dead_letters else "",
        "per_minute": f"{listener.per_minute:,.0f}",
        **_sparkline(listener.minutes),
        "p50": "-" if listener.p50 is None else duration(listener.p50),
        "p95": "-" if listener.p95 is None else duration(listener.p95),
        "processes": listener.processes,
        "is_paused": listener.paused_at is not None,
        "paused": relative_time(listener.paused_at),
        "paused_by": listener.paused_by,
        "can_be_paused": listener.waiting is not None or bool(listener.unknown_streams),
    }


def _sparkline(minutes: Sequence[int]) -> dict[str, str]:
    whole = minutes[:-1]  # the current one is not over
    return {
        "points": sparkline(whole) if any(whole) else "",
        "plot_label": _("Handled in each minute of the last hour: %(sum)s in all, at most %(max)s in a minute")
        % {"sum": f"{sum(whole):,}", "max": f"{max(whole, default=0):,}"},
    }


def _waiting(listener: ListenerStatus) -> str:
    if listener.unknown_streams:
        return _("unknown")
    if listener.waiting is None:
        return _("not run yet")
    return f"{listener.waiting:,}" if listener.is_exact else _("about %s") % f"{listener.waiting:,}"


def _outbox(outbox: Outbox, site: AdminSite) -> dict[str, Any]:
    return {
        "database": outbox.database,
        "unpublished": f"{outbox.unpublished:,}",
        "unpublished_url": outbox_url(site, outbox.database, state="waiting") if outbox.unpublished else "",
        "refused": f"{outbox.refused:,}",
        "refused_url": outbox_url(site, outbox.database, state="refused") if outbox.refused else "",
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
