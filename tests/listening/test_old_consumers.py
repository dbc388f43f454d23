"""Consumers that are long gone are deleted."""

import time

import pytest

from lightbus_django import fire
from tests.conftest import drain, eventually
from tests.listening.streams import GROUP, KEY, fetch

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


def test_consumers_long_gone_are_deleted_only_with_nothing_pending(r, record, consume, housekeeping, lightbus):
    lightbus(CONSUMER_TTL=1e-9)
    consumer = consume()
    r.xgroup_createconsumer(KEY, GROUP, "gone")
    r.xgroup_createconsumer(KEY, GROUP, "owes")
    fire("shop.order_placed", number=1)
    fetch(r, "owes")
    time.sleep(0.002)  # Redis counts in milliseconds
    fire("shop.order_placed", number=2)
    drain(consumer)
    housekeeping(consumer).redis.delete_old_consumers()
    names = {row["name"] for row in r.xinfo_consumers(KEY, GROUP)}
    assert "owes" in names
    assert "gone" not in names


def test_a_group_keeps_its_last_consumer(r, record, consume, housekeeping, lightbus):
    """A Lightbus service that starts destroys groups that have none."""
    lightbus(CONSUMER_TTL=1e-9)
    housekeeping(consume()).redis.delete_old_consumers()
    assert [row["name"] for row in r.xinfo_consumers(KEY, GROUP)] == ["worker"]


def test_of_a_groups_consumers_the_one_seen_last_is_kept(r, record, consume, housekeeping, lightbus):
    lightbus(CONSUMER_TTL=1e-9)
    r.xgroup_create(KEY, GROUP, mkstream=True)
    for name in ("a", "z"):
        r.xgroup_createconsumer(KEY, GROUP, name)
    eventually(lambda: min(row["idle"] for row in r.xinfo_consumers(KEY, GROUP)) > 20)
    housekeeping(consume()).redis.delete_old_consumers()
    assert [row["name"] for row in r.xinfo_consumers(KEY, GROUP)] == ["worker"]
