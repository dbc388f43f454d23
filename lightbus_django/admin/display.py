"""How the pages show times, durations and figures."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from django.utils import timezone
from django.utils.functional import Promise
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext as _

from lightbus_django.events.times import as_aware
from lightbus_django.operating.durations import duration

_BREAKS = re.compile(r"(?<=[._-])(?![._-])|(?<=[a-z0-9])(?=[A-Z])")
"""Where a name may be broken."""

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


def state_word(text: str | Promise, *, must_act: bool = False) -> str:
    """Return a state as HTML; it stands out if somebody has to act."""
    return format_html('<span class="lightbus-state{}">{}</span>', " lightbus-act" if must_act else "", text)


def breakable(name: str) -> str:
    """Return a name as HTML that may be broken into lines after its dots, hyphens and underscores, and in camelCase."""
    return format_html_join("", "{}<wbr>", ((part,) for part in _BREAKS.split(name) if part))


def first_line(text: str) -> str:
    """Return the first line of a text as HTML that is cut to its column, with all of the line as its title."""
    line = text.strip().partition("\n")[0][:300]
    return format_html('<span class="lightbus-line" title="{}">{}</span>', line, line) if line else "-"
