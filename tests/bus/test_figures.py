"""Figures of consumer groups and processes: counts by minute, and percentiles of latencies."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from lightbus_django import BusError
from lightbus_django.bus import figures
from lightbus_django.bus.figures import FAILED, HANDLED, bucket, percentile

NOW = datetime(2026, 3, 1, 12, 5, 30, tzinfo=UTC)


def add(redis_client, minutes_ago, **counts):
    group = {HANDLED: counts.pop("handled", 0), FAILED: counts.pop("failed", 0), **counts.pop("latencies", {})}
    figures.add(redis_client, {"shop-mail": Counter(group)}, NOW - timedelta(minutes=minutes_ago))


def read(redis_client):
    return figures.read(redis_client, ["shop-mail"], NOW)["shop-mail"]


def test_counts_are_added_up_by_minute_over_the_turn_of_the_hour(r, redis_client):
    for minutes_ago, handled in ((0, 1), (0, 2), (3, 10), (10, 100), (59, 1000), (60, 10_000)):
        add(redis_client, minutes_ago, handled=handled, failed=1)
    found = read(redis_client)
    assert len(found.minutes) == 60
    assert found.minutes[-1] == (NOW.replace(second=0), 3, 2, {})
    assert found.minutes[-4].handled == 10
    assert found.minutes[-11].handled == 100
    assert found.minutes[0].handled == 1000
    assert (found.handled, found.failed) == (1113, 5)


def test_the_rate_is_that_of_the_last_five_whole_minutes(r, redis_client):
    add(redis_client, 0, handled=1000)
    add(redis_client, 1, handled=50)
    add(redis_client, 5, handled=50)
    add(redis_client, 6, handled=1000)
    assert read(redis_client).per_minute == 20


def test_a_group_without_figures_has_none(r, redis_client):
    found = read(redis_client)
    assert (found.handled, found.per_minute, found.percentile(0.5)) == (0, 0, None)


def test_percentiles_are_within_a_tenth_of_the_truth(r, redis_client):
    latencies = [number**2 for number in range(1, 101)]  # milliseconds
    add(redis_client, 2, handled=100, latencies=Counter(map(bucket, latencies)))
    found = read(redis_client)
    assert found.percentile(0.5) == pytest.approx(2.5, rel=0.1)
    assert found.percentile(0.95) == pytest.approx(9.025, rel=0.1)
    assert found.percentile(1) == pytest.approx(10, rel=0.1)


def test_percentiles_of_a_minute_are_of_its_events_alone(r, redis_client):
    add(redis_client, 2, handled=1, latencies=Counter([bucket(100)]))
    add(redis_client, 1, handled=1, latencies=Counter([bucket(5000)]))
    first, second, current = read(redis_client).minutes[-3:]
    assert percentile(first.latencies, 0.95) == pytest.approx(0.1, rel=0.1)
    assert percentile(second.latencies, 0.95) == pytest.approx(5, rel=0.1)
    assert percentile(current.latencies, 0.95) is None


def test_the_minutes_of_several_groups_are_added_up(r, redis_client):
    for group, count, milliseconds in (("shop-mail", 2, 10), ("shop-book", 3, 1000)):
        counts = Counter({HANDLED: count, FAILED: 1, bucket(milliseconds): count})
        figures.add(redis_client, {group: counts}, NOW)
    minutes = figures.merge(figures.read(redis_client, ["shop-mail", "shop-book"], NOW).values())
    assert len(minutes) == 60
    assert minutes[-1] == (NOW.replace(second=0), 5, 2, {bucket(10): 2, bucket(1000): 3})
    assert figures.merge([]) == []


@pytest.mark.parametrize("milliseconds", [-5, 0, 0.0])
def test_no_latency_is_in_the_first_bucket(milliseconds):
    assert bucket(milliseconds) == 0


def test_keys_are_few_and_expire(r, redis_client):
    for minutes_ago in range(120):
        add(redis_client, minutes_ago, handled=1)
    keys = r.keys("*")
    assert len(keys) == 3
    assert all(0 < r.ttl(key) <= figures.EXPIRY for key in keys)


def test_the_group_of_another_listener_has_its_own(r, redis_client):
    add(redis_client, 1, handled=5)
    found = figures.read(redis_client, ["shop-other", "shop-mail"], NOW)
    assert (found["shop-other"].handled, found["shop-mail"].handled) == (0, 5)


def by(redis_client, process_name, minutes_ago=0, service_name="shop", **counts):
    """Add what a process has handled, by group."""
    by_group = {group: Counter({HANDLED: count}) for group, count in counts.items()}
    at = NOW - timedelta(minutes=minutes_ago)
    figures.add(redis_client, by_group, at, process=(service_name, process_name))


class TestProcesses:
    def test_are_counted_over_all_groups_and_the_turn_of_the_hour(self, r, redis_client):
        by(redis_client, "web:1", mail=2, book=3)
        by(redis_client, "web:1", 10, mail=10)
        by(redis_client, "web:1", 60, mail=1000)
        by(redis_client, "web2", 59, mail=7)
        found = figures.read_processes(redis_client, "shop", NOW)
        assert set(found) == {"web:1", "web2"}
        assert len(found["web:1"]) == len(found["web2"]) == 60
        assert (found["web:1"][-1], found["web:1"][-11], sum(found["web:1"])) == (5, 10, 15)
        assert (found["web2"][0], sum(found["web2"])) == (7, 7)

    def test_of_another_service_are_not_counted(self, r, redis_client):
        by(redis_client, "web1", service_name="billing", mail=1)
        assert figures.read_processes(redis_client, "shop", NOW) == {}

    def test_one_that_failed_only_has_handled_none(self, r, redis_client):
        figures.add(redis_client, {"mail": Counter({FAILED: 1})}, NOW, process=("shop", "web1"))
        assert figures.read_processes(redis_client, "shop", NOW) == {}

    def test_keys_are_as_many_for_a_hundred_as_for_one_and_expire(self, r, redis_client):
        for number in range(100):
            by(redis_client, f"web{number}", number, mail=1)
        keys = r.keys(f"{figures.PROCESSES_PREFIX}*")
        assert len(keys) == 3
        assert all(0 < r.ttl(key) <= figures.EXPIRY for key in keys)


def test_what_redis_refuses_is_an_error(r, redis_client):
    r.set(figures._key("shop-mail", NOW), "no hash")
    with pytest.raises(BusError, match="holds something other"):
        add(redis_client, 0, handled=1)
    with pytest.raises(BusError, match="holds something other"):
        read(redis_client)
