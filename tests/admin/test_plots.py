"""The plots of the Bus page: lines, axes, the legend and the table, with one listener and with many."""

import pytest

from lightbus_django.admin.plots import HEIGHT, MAX_LINES, WIDTH, last_hour

from .statuses import AT, listener, status


def counts(**by_minute):
    """Return the counts of sixty minutes; `m0` is the first one, `m59` the current one."""
    return [by_minute.get(f"m{number}", 0) for number in range(60)]


def seconds(**by_minute):
    return [by_minute.get(f"m{number}") for number in range(60)]


def handled(*listeners):
    (plot,) = last_hour(status(*listeners)).plots
    return plot


def points(path):
    return [tuple(map(float, point.split())) for point in path.replace("M", "L").replace("h0", "").split("L")[1:]]


class TestLines:
    def test_there_are_none_if_nothing_happened(self):
        assert last_hour(status(listener())).plots == []
        assert last_hour(status()).plots == []

    @pytest.mark.parametrize("group", ["", "shop-book"])
    def test_there_are_none_without_redis(self, group):
        empty = {name: [] for name in ("minutes", "minutes_failed", "minutes_p50", "minutes_p95")}
        found = last_hour(status(listener(**empty), p50=[], p95=[]), group)
        assert (found.plots, found.times, found.rows) == ([], [], [])

    def test_the_current_minute_is_left_out(self):
        assert last_hour(status(listener(minutes=counts(m59=5)))).plots == []

    def test_one_is_within_its_frame(self):
        (line,) = handled(listener(minutes=counts(m0=10, m58=5))).lines
        found = points(line.path)
        assert len(found) == 59
        assert (found[0], found[1][1], found[-1]) == ((0, 0), HEIGHT, (WIDTH, HEIGHT / 2))

    def test_a_gap_is_not_bridged_and_a_lonely_point_is_a_dot(self):
        shown = seconds(m0=1, m1=1, m5=1)
        (plot,) = last_hour(status(p50=shown, p95=shown)).plots
        line = plot.lines[0]
        assert (line.path.count("M"), line.path.count("L")) == (1, 1)
        assert line.dots == f"M{5 * WIDTH / 58:.1f} {HEIGHT:.1f}h0"

    def test_those_of_the_busiest_come_first(self):
        lines = handled(
            listener("idle"), listener("a", minutes=counts(m1=1)), listener("b", minutes=counts(m1=2))
        ).lines
        assert [(line.name, line.group) for line in lines] == [("b", "shop-b"), ("a", "shop-a")]

    def test_as_many_as_can_be_told_apart(self):
        few = [listener(f"l{number}", minutes=counts(m1=1)) for number in range(MAX_LINES)]
        lines = handled(*few).lines
        assert [line.style for line in lines] == list(range(1, MAX_LINES + 1))
        assert all(line.group for line in lines)

    def test_of_many_listeners_the_rest_is_added_up(self):
        many = [listener(f"l{number}", minutes=counts(m1=100 - number, m2=1)) for number in range(30)]
        lines = handled(*many).lines
        assert [line.name for line in lines] == ["l0", "l1", "l2", "l3", "l4", "25 others together"]
        assert sum(lines[-1].values) == sum(100 - number + 1 for number in range(5, 30))
        assert lines[-1].group == ""
        assert lines[-1].summary == "2,100 in all, at most 2,075 in a minute"

    def test_of_a_chosen_listener_failures_and_latencies_are_its_own(self):
        book = listener(
            minutes=counts(m1=3), minutes_failed=counts(m2=2), minutes_p50=seconds(m1=1), minutes_p95=seconds(m1=2)
        )
        other = listener("mail", minutes=counts(m1=100))
        found = last_hour(status(book, other, p50=seconds(m1=50), p95=seconds(m1=60)), "shop-book")
        assert found.chosen == "book"
        assert [[line.name for line in plot.lines] for plot in found.plots] == [
            ["Handled", "Failed attempts"],
            ["p50", "p95"],
        ]
        assert found.rows == [("11:23", ["0", "2", "-", "-"]), ("11:22", ["3", "0", "1 s", "2 s"])]

    def test_an_unknown_listener_is_all_of_them(self):
        assert last_hour(status(listener(minutes=counts(m1=3))), "gone").chosen == ""


class TestAxes:
    @pytest.mark.parametrize(
        ("most", "ticks"),
        [
            (1, ["0", "1"]),
            (2, ["0", "1", "2"]),
            (3, ["0", "5"]),
            (7, ["0", "5", "10"]),
            (1001, ["0", "1,000", "2,000"]),
        ],
    )
    def test_counts_begin_at_zero_and_end_at_a_round_number(self, most, ticks):
        plot = handled(listener(minutes=counts(m1=most)))
        assert [tick.text for tick in plot.ticks] == ticks
        assert (plot.ticks[0].at, plot.ticks[-1].at) == (HEIGHT, 0)

    @pytest.mark.parametrize(
        ("least", "most", "ticks"),
        [
            (0.02, 0.03, ["0.01 s", "0.1 s"]),
            (0.1, 0.1, ["0.1 s", "1 s"]),
            (0.0001, 3600, ["0.001 s", "0.01 s", "0.1 s", "1 s", "10 s", "60 s", "10 min", "60 min"]),
            (10**9, 10**10, ["100 days", "1000 days"]),
        ],
    )
    def test_latencies_are_on_a_logarithmic_scale(self, least, most, ticks):
        (plot,) = last_hour(status(p50=seconds(m1=least), p95=seconds(m1=most))).plots
        assert [tick.text for tick in plot.ticks] == ticks
        assert all(0 <= y <= HEIGHT for line in plot.lines for _, y in points(line.path + line.dots))

    def test_times_are_the_quarters_of_an_hour_where_they_were(self, settings):
        settings.TIME_ZONE = "Europe/Berlin"
        ticks = last_hour(status()).times
        assert [tick.text for tick in ticks] == ["12:30", "12:45", "13:00", "13:15"]
        assert ticks[0].at == pytest.approx(100 * 9 / 58, abs=0.1)

    @pytest.mark.parametrize(
        ("minute", "number", "text", "anchor"), [(14, 0, "12:15", "start"), (1, -1, "13:00", "end")]
    )
    def test_times_at_an_edge_stay_within_the_plot(self, minute, number, text, anchor):
        tick = last_hour(status(at=AT.replace(hour=13, minute=minute))).times[number]
        assert (tick.text, tick.anchor) == (text, anchor)


def test_a_plot_says_what_it_shows():
    shown = last_hour(status(listener(minutes=counts(m1=3, m2=5)), p50=seconds(m1=0.5), p95=seconds(m1=2, m2=90)))
    first, second = shown.plots
    assert first.description == "book: 8 in all, at most 5 in a minute"
    assert second.description == "p50: 0.5 s to 0.5 s; p95: 2 s to 90 s"


def test_the_table_has_the_latest_minutes_first_and_only_those_with_events():
    shown = last_hour(status(listener(minutes=counts(m1=3, m5=1234)), p50=seconds(m1=0.5), p95=seconds(m1=2)))
    assert shown.heads == ["book", "p50", "p95"]
    assert shown.rows == [("11:26", ["1,234", "-", "-"]), ("11:22", ["3", "0.5 s", "2 s"])]
