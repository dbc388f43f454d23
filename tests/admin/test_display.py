"""How the pages show times and figures."""

from datetime import UTC, datetime, timedelta

import pytest

from lightbus_django.admin.display import (
    SPARKLINE_HEIGHT,
    SPARKLINE_WIDTH,
    breakable,
    first_line,
    relative_time,
    sparkline,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s ago"), (3, "3 s ago"), (-75.4, "in 75 s"), (3 * 3600, "3 h ago"), (10**6, "12 days ago")],
)
def test_relative_times_have_the_exact_time_as_their_title(seconds, text):
    shown = relative_time(NOW - timedelta(seconds=seconds), NOW)
    assert f">{text}</time>" in shown
    exact = NOW - timedelta(seconds=seconds)
    assert f'title="{exact:%Y-%m-%d %H:%M:%S} UTC"' in shown


def test_times_of_a_database_without_time_zones(settings):
    settings.USE_TZ = False
    assert ">5 s ago<" in relative_time(NOW.replace(tzinfo=None) - timedelta(seconds=5), NOW)


def test_no_time():
    assert relative_time(None) == "-"


def test_a_sparkline_stays_within_its_frame():
    points = [point.split(",") for point in sparkline([0, 5, 1000]).split()]
    assert [float(x) for x, _ in points] == [0, SPARKLINE_WIDTH / 2, SPARKLINE_WIDTH]
    heights = [float(y) for _, y in points]
    assert heights[0] == SPARKLINE_HEIGHT - 1
    assert heights[2] == 1
    assert all(0 <= y <= SPARKLINE_HEIGHT for y in heights)


def test_a_sparkline_of_nothing():
    assert sparkline([]) == sparkline([1]) == ""
    assert len({point.split(",")[1] for point in sparkline([0, 0, 0]).split()}) == 1


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("shop.order_placed", ["shop.", "order_", "placed"]),
        ("HTTPConnectionError", ["HTTPConnection", "Error"]),
        ("a--b", ["a--", "b"]),
        ("_private", ["_", "private"]),
        ("<b>", ["&lt;b&gt;"]),
        ("", []),
    ],
)
def test_names_are_broken_at_their_words(name, parts):
    assert breakable(name) == "".join(f"{part}<wbr>" for part in parts)


def test_the_first_line_of_an_error():
    assert first_line("\n  one <b>\ntwo") == '<span class="lightbus-line" title="one &lt;b&gt;">one &lt;b&gt;</span>'
    assert first_line("") == first_line(" \n") == "-"
    assert len(first_line("x" * 10_000)) < 1000
