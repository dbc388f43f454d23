"""What a service may be like, for tests of what the Bus page makes of it."""

from datetime import UTC, datetime

from lightbus_django.operating.assessment import NOTHING
from lightbus_django.operating.report import ListenerStatus, Outbox, Process, Status

AT = datetime(2026, 3, 1, 12, 20, 30, tzinfo=UTC)
NO_LATENCIES: list[float | None] = [None] * 60


def listener(name="book", **values):
    defaults = {
        "name": name,
        "group": f"shop-{name}",
        "events": [],
        "streams": [],
        "database": "default",
        "waiting": 0,
        "is_exact": True,
        "in_hand": 0,
        "oldest": None,
        "seconds_behind": 0,
        "retrying": 0,
        "dead_letters": 0,
        "per_minute": 0,
        "p50": None,
        "p95": None,
        "minutes": list(NOTHING),
        "minutes_failed": list(NOTHING),
        "minutes_p50": NO_LATENCIES,
        "minutes_p95": NO_LATENCIES,
        "processes": [],
        "is_running": True,
        "paused_at": None,
        "paused_by": "",
        "problems": [],
    }
    return ListenerStatus(**defaults | values)


def status(*listeners, p50=NO_LATENCIES, p95=NO_LATENCIES, at=AT, **values):
    return Status(
        service_name="shop",
        bus="",
        at=at,
        listeners=list(listeners),
        streams=[],
        minutes_p50=p50,
        minutes_p95=p95,
        **{"processes": [], "outboxes": [], "problems": [], **values},
    )


def process(name="worker", **values):
    defaults = {
        "name": name,
        "service_name": "shop",
        "host": "h",
        "pid": 7,
        "version": "1",
        "code_version": "",
        "seconds_running": 100,
        "seconds_silent": 1,
        "listeners": [],
        "in_hand": [],
        "events_in_hand": [],
        "per_minute": 0,
        "minutes": list(NOTHING),
        "problems": [],
    }
    return Process(**defaults | values)


def outbox(database="default", **values):
    return Outbox(**{"database": database, "unpublished": 0, "refused": 0, "seconds_behind": 0, **values})
