"""How an event got onto the bus, as a sentence."""

from datetime import datetime, timedelta

from lightbus_django.events.times import as_aware, fired_at

from .durations import duration
from .event_records import EventRecords


def describe_origin(records: EventRecords) -> str:
    """Return where an event comes from and how far it is on its way to the bus."""
    row = records.outbox
    if row is None:
        return f"The outbox has no row of it: it was {_describe_unknown(records)}; {_describe_entry(records)}."
    start = f"Fired with on_commit() by {records.service_name}, database {records.outbox_database!r}; "
    if row.due_at is None:
        if not records.stream_id:
            return f"{start}published."
        gone = "; since then it was trimmed" if records.is_in_stream is False else ""
        return f"{start}published as {records.stream_id}{gone}."
    due = as_aware(row.due_at)
    if row.error:
        return f"{start}not published: {row.error} It is tried again at {clock(due)}."
    if row.published_at is not None:
        return f"{start}published, and will be published again by a relay."
    if records.stream_id:
        return f"{start}published as {records.stream_id}; a relay has not marked its row yet."
    if due > records.now:
        return f"{start}not published yet; its process has until {clock(due)}, then a relay publishes it."
    return f"{start}not published for {duration((records.now - due).total_seconds())}: is lightbus_listen running?"


def _describe_unknown(records: EventRecords) -> str:
    """Return what may be the reason that the outbox has no row of an event."""
    firing = {each.process.service_name for each in records.heartbeats if records.name in each.process.fires}
    others = sorted(firing - {records.service_name})
    known = f" ({', '.join(others)} {'fires' if len(others) == 1 else 'fire'} {records.name})" if others else ""
    at = fired_at(records.id)
    if at is not None and records.now - at < timedelta(seconds=records.settings.outbox_retention):
        return f"fired with fire(), or by another service{known}"
    return f"fired with fire(), by another service{known}, or was pruned"


def _describe_entry(records: EventRecords) -> str:
    if records.is_in_stream:
        return f"it is in {records.stream} as {records.stream_id}"
    if records.is_in_stream is None:
        return "Redis could not be asked for its entry"
    return "it is not in its stream" + (", where it was trimmed or lost" if records.stream_id else "")


def exact(time: datetime) -> str:
    """Return date and time in the server's time zone, which is that of the log."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def clock(time: datetime) -> str:
    """Return the time of day in the server's time zone, which is that of the log; with the date if it is not today."""
    local = time.astimezone()
    return f"{local:%H:%M:%S}" if local.date() == datetime.now().astimezone().date() else exact(time)
