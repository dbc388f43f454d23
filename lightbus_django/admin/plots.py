"""The plots of the Bus page, drawn by the server as SVG: events by minute, and their latencies.

Lines are drawn in a frame that is stretched to the width of the screen. Texts are not stretched, so their positions
from left to right are percentages. Each line has a dash pattern besides its colour; both are in the style sheet.
"""

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from django.utils import timezone
from django.utils.translation import gettext as _

from lightbus_django.operating.durations import duration
from lightbus_django.operating.report import ListenerStatus, Status

HEIGHT = 160
"""Height of the frame in pixels."""

WIDTH = 1000
"""Width of the frame in its own units."""

MAX_LINES = 6
"""Maximum number of lines in a plot. Those of further listeners are added up in the last one."""

_LATENCIES = (0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 86400, 10 * 86400, 100 * 86400, 1000 * 86400)
"""Where the axis of latencies may have ticks, in seconds."""

Values = Sequence[float | None]


class Line(NamedTuple):
    """One line of a plot, and its entry in the legend."""

    name: str
    values: Values
    style: int
    """The number of its colour and dash pattern, from 1 to MAX_LINES."""
    summary: str
    path: str
    dots: str
    """A path through the values without neighbours."""
    group: str = ""
    """The consumer group whose plots the legend links to; empty for none."""


class Tick(NamedTuple):
    """A labelled position on an axis: pixels from the top, or percent from the left."""

    at: float
    text: str
    anchor: str = "middle"


class Plot(NamedTuple):
    key: str
    title: str
    unit: str
    lines: list[Line]
    ticks: list[Tick]

    @property
    def description(self) -> str:
        """What the plot shows, for those who can't see it."""
        return "; ".join(f"{line.name}: {line.summary}" for line in self.lines)


class LastHour(NamedTuple):
    """The plots of the last hour, without the current minute."""

    chosen: str
    """The name of the only listener that is shown; empty for all."""
    plots: list[Plot]
    times: list[Tick]
    heads: list[str]
    rows: list[tuple[str, list[str]]]
    """The same as a table: a time, and a cell for each line. Minutes in which nothing happened are left out."""


def last_hour(status: Status, group: str = "") -> LastHour:
    """Return the plots of all listeners, or of the one with this consumer group. There are none if nothing happened."""
    chosen = next((each for each in status.listeners if each.group == group), None)
    lines = _lines_of_one(chosen) if chosen else _lines_of_all(status.listeners)
    source = chosen or status
    p50, p95 = source.minutes_p50[:-1], source.minutes_p95[:-1]
    plots = []
    if any(any(line.values) for line in lines):
        plots.append(_plot("handled", _("Handled per minute"), _("events a minute"), lines, *_linear(lines)))
    if any(value is not None for value in p95):
        latencies = [_latencies("p50", p50, 1), _latencies("p95", p95, 2)]
        title = _("Latency, from publication to handling")
        plots.append(_plot("latency", title, _("logarithmic scale"), latencies, *_logarithmic(latencies)))
    minutes = [status.at - timedelta(minutes=back) for back in range(len(status.minutes_p50) - 1, 0, -1)]
    return LastHour(chosen.name if chosen else "", plots, _time_ticks(minutes), *_table(minutes, plots))


# --- Lines ------------------------------------------------------------------------------------


def _lines_of_one(listener: ListenerStatus) -> list[Line]:
    lines = [_counts(_("Handled"), listener.minutes[:-1], 1)]
    if any(listener.minutes_failed[:-1]):
        lines.append(_counts(_("Failed attempts"), listener.minutes_failed[:-1], 2))
    return lines


def _lines_of_all(listeners: Sequence[ListenerStatus]) -> list[Line]:
    """Return a line for each of the busiest listeners, and one for the others together."""
    active = sorted((each for each in listeners if any(each.minutes[:-1])), key=lambda each: -sum(each.minutes[:-1]))
    alone, others = (active, []) if len(active) <= MAX_LINES else (active[: MAX_LINES - 1], active[MAX_LINES - 1 :])
    lines = [_counts(each.name, each.minutes[:-1], style, each.group) for style, each in enumerate(alone, 1)]
    if others:
        added_up = [sum(counts) for counts in zip(*(each.minutes[:-1] for each in others), strict=True)]
        lines.append(_counts(_("%d others together") % len(others), added_up, MAX_LINES))
    return lines


def _counts(name: str, counts: Sequence[int], style: int, group: str = "") -> Line:
    summary = _("%(sum)s in all, at most %(max)s in a minute") % {
        "sum": f"{sum(counts):,}",
        "max": f"{max(counts, default=0):,}",
    }
    return Line(name, counts, style, summary, "", "", group)


def _latencies(name: str, seconds: Values, style: int) -> Line:
    known = [each for each in seconds if each is not None]
    between = {"least": duration(min(known)), "most": duration(max(known))}
    return Line(name, seconds, style, _("%(least)s to %(most)s") % between, "", "")


# --- Axes -------------------------------------------------------------------------------------


def _linear(lines: Sequence[Line]) -> tuple[Callable[[float], float], list[float], Callable[[float], str]]:
    top = _round_up(max(value or 0 for line in lines for value in line.values))
    return (lambda value: value / top), [0, *([top / 2] if top % 2 == 0 else []), top], "{:,.0f}".format


def _round_up(value: float) -> int:
    """Return the next number that begins with 1, 2 or 5 and has only zeros after that."""
    power = int(10 ** math.floor(math.log10(max(value, 1))))
    return next(first * power for first in (1, 2, 5, 10) if first * power >= value)


def _logarithmic(lines: Sequence[Line]) -> tuple[Callable[[float], float], list[float], Callable[[float], str]]:
    values = [value for line in lines for value in line.values if value is not None]
    bottom = max((tick for tick in _LATENCIES[:-1] if tick <= min(values)), default=_LATENCIES[0])
    top = min((tick for tick in _LATENCIES if tick > bottom and tick >= max(values)), default=_LATENCIES[-1])
    height = math.log(top / bottom)

    def scale(value: float) -> float:
        return min(max(math.log(value / bottom) / height, 0), 1)

    return scale, [tick for tick in _LATENCIES if bottom <= tick <= top], duration


def _plot(
    key: str,
    title: str,
    unit: str,
    lines: Sequence[Line],
    scale: Callable[[float], float],
    ticks: Sequence[float],
    text: Callable[[float], str],
) -> Plot:
    def height(value: float) -> float:
        return round(HEIGHT * (1 - scale(value)), 1)

    drawn = []
    for line in lines:
        path, dots = _paths([None if each is None else height(each) for each in line.values])
        drawn.append(line._replace(path=path, dots=dots))
    return Plot(key, title, unit, drawn, [Tick(height(tick), text(tick)) for tick in ticks])


def _paths(heights: Values) -> tuple[str, str]:
    """Return an SVG path through these heights, interrupted where one is None, and one of those without neighbours."""
    step = WIDTH / max(1, len(heights) - 1)
    path = dots = ""
    for number, height in enumerate(heights):
        if height is None:
            continue
        is_first = number == 0 or heights[number - 1] is None
        is_last = number == len(heights) - 1 or heights[number + 1] is None
        point = f"{number * step:.1f} {height}"
        if is_first and is_last:
            dots += f"M{point}h0"
        else:
            path += f"{'M' if is_first else 'L'}{point}"
    return path, dots


def _time_ticks(minutes: Sequence[datetime]) -> list[Tick]:
    """Return the ticks of the quarters of an hour."""
    ticks = []
    for number, minute in enumerate(minutes):
        if minute.minute % 15 == 0:
            at = 100 * number / (len(minutes) - 1)
            ticks.append(Tick(round(at, 1), _clock(minute), "start" if at < 5 else "end" if at > 95 else "middle"))
    return ticks


# --- The table --------------------------------------------------------------------------------


def _table(minutes: Sequence[datetime], plots: Sequence[Plot]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    lines = [(line, plot.key == "latency") for plot in plots for line in plot.lines]
    rows = []
    for number, minute in reversed(list(enumerate(minutes))):
        values = [(line.values[number], is_latency) for line, is_latency in lines]
        if any(value for value, _ in values):
            cells = [
                "-" if value is None else duration(value) if is_time else f"{value:,}" for value, is_time in values
            ]
            rows.append((_clock(minute), cells))
    return [line.name for line, _ in lines], rows


def _clock(minute: datetime) -> str:
    return f"{timezone.localtime(minute):%H:%M}"
