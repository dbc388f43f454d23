"""What needs attention, as the Bus page shows it: each problem with the way out, a command or a link."""

from collections.abc import Iterator
from typing import NamedTuple

from django.contrib.admin import AdminSite
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from lightbus_django.models import stored_group
from lightbus_django.operating.assessment import FROZEN_AFTER, LATE_AFTER
from lightbus_django.operating.report import ListenerStatus, Process, Status

from .links import event_url, failed_list_url, failures_url, outbox_url


class Attention(NamedTuple):
    """Somebody has to act."""

    subject: str
    """What the problems concern. Listeners with the same problems are shown together."""
    problems: list[str]
    hints: list[str]
    """What to do, where the problems don't say it."""
    links: list[tuple[str, str]]
    """Text and address of the page where something can be done."""


def attention(status: Status, site: AdminSite, *, may_view_events: bool) -> Iterator[Attention]:
    """Yield what needs attention: the bus, the processes, the listeners."""
    if status.problems:
        yield Attention(_("Bus"), status.problems, list(_hints_for_bus(status)), list(_links_to_outboxes(status, site)))
    for process in status.processes:
        if process.problems:
            ids = process.events_in_hand if may_view_events else []
            links = [(_("Event %s") % event_id, event_url(site, event_id)) for event_id in ids]
            yield Attention(_("Process %s") % process.name, process.problems, list(_hints_for(process, status)), links)
    yield from _listeners(status, site)


def _listeners(status: Status, site: AdminSite) -> Iterator[Attention]:
    alike: dict[tuple[tuple[str, ...], tuple[str, ...], str], list[str]] = {}
    for listener in status.listeners:
        if listener.problems:
            url = failed_events_of(listener, site, state="dead") if listener.dead_letters else ""
            alike.setdefault((tuple(listener.problems), tuple(_hints(listener)), url), []).append(listener.name)
    for (problems, hints, url), names in alike.items():
        links = [(_("Dead letters"), url), (_("Failures by cause"), failures_url(site))] if url else []
        text = ngettext("Listener %s", "Listeners %s", len(names)) % ", ".join(names)
        yield Attention(text, list(problems), list(hints), links)


def failed_events_of(listener: ListenerStatus, site: AdminSite, *, state: str) -> str:
    """Return the address of the listener's failed events in a state; empty if the admin doesn't show its database."""
    group = stored_group(listener.group, listener.database)
    return failed_list_url(site, listener.database, consumer_group=group, state=state)


def _links_to_outboxes(status: Status, site: AdminSite) -> Iterator[tuple[str, str]]:
    for outbox in status.outboxes:
        if outbox.refused and (url := outbox_url(site, outbox.database, state="refused")):
            yield _("Refused events"), url
        if outbox.seconds_behind > LATE_AFTER and (url := outbox_url(site, outbox.database, state="waiting")):
            yield _("Events that are not published"), url


def _hints_for_bus(status: Status) -> Iterator[str]:
    if not status.is_redis_known:
        yield _(
            "Check that Redis runs, and URL in settings.LIGHTBUS. Events of on_commit wait in the outbox meanwhile."
        )
    if status.unknown_databases:
        yield _("Check that the database answers, and run manage.py migrate.")


def _hints_for(process: Process, status: Status) -> Iterator[str]:
    if process.seconds_silent > FROZEN_AFTER:
        yield _("If it does not come back, start it again with manage.py lightbus_listen.")
    elif [each.name for each in status.processes].count(process.name) > 1:
        yield _("Give each process a PROCESS_NAME of its own, or stop one.")
    else:
        yield _("It goes on by itself once the cause is gone; its log says more. If it does not, restart it.")


def _hints(listener: ListenerStatus) -> Iterator[str]:
    if not listener.is_running:
        yield _("Start manage.py lightbus_listen, or look at why it ended.")
    elif listener.seconds_behind > LATE_AFTER and listener.paused_at is None:
        yield _("If its figures below are as usual, start more processes. If they are not, see what it has in hand.")
    if listener.paused_at is not None:
        yield _("Resume it below.")
