"""How the pages show times, durations and figures."""

from collections.abc import Sequence
from datetime import UTC, datetime

from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _

from lightbus_django.events.times import as_aware
from lightbus_django.operating.durations import duration

SPARKLINE_WIDTH = 118
SPARKLINE_HEIGHT = 24


def relative_time(time: datetime | None, now: datetime | None = None) -> str:
    """Return a time as HTML, such as "3 min ago" or "in 10 s", with the exact time as its title.

    Args:
        time: as the database returned it, or aware; for None, the result is "-".
        now: the current time; aware.
    """
    if time is None:
        return "-"
    time = as_aware(time)
    seconds = ((datetime.now(UTC) if now is None else now) - time).total_seconds()
    text = _("%s ago") if seconds >= 0 else _("in %s")
    exact = f"{timezone.localtime(time):%Y-%m-%d %H:%M:%S %Z}"
    shown = text % duration(round(abs(seconds)))
    return format_html('<time datetime="{}" title="{}">{}</time>', time.isoformat(), exact, shown)


def sparkline(values: Sequence[int]) -> str:
    """Return the points of an SVG polyline, SPARKLINE_WIDTH by SPARKLINE_HEIGHT; empty without two values."""
    if len(values) < 2:
        return ""
    step = SPARKLINE_WIDTH / (len(values) - 1)
    scale = (SPARKLINE_HEIGHT - 2) / max(*values, 1)
    return " ".join(
        f"{number * step:.1f},{SPARKLINE_HEIGHT - 1 - value * scale:.1f}" for number, value in enumerate(values)
    )
