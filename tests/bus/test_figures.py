"""Figures of consumer groups: counts by minute, and percentiles of latencies."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from lightbus_django import BusError
from lightbus_django.bus import figures
from lightbus_django.bus.figures import FAILED, HANDLED, bucket

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
    assert found.minutes[-1] == (NOW.replace(second=0), 3, 2)
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


def test_what_redis_refuses_is_an_error(r, redis_client):
    r.set(figures._key("shop-mail", NOW), "no hash")
    with pytest.raises(BusError, match="holds something other"):
        add(redis_client, 0, handled=1)
    with pytest.raises(BusError, match="holds something other"):
        read(redis_client)
