"""Heartbeats in Redis: who is there, who has gone, and who runs under the name of another."""

import pytest

from lightbus_django.bus import heartbeats
from lightbus_django.bus.heartbeats import INDEX, PREFIX, Heartbeat, ListenerSign, ProcessSign


def sign(name="web1", service="shop", **values):
    return ProcessSign(service_name=service, process_name=name, **values)


def stored(r, name="shop/web1"):
    return r.hgetall(PREFIX + name)


def age(r, start, seconds, name="shop/web1", *, first=None):
    """Let a heartbeat have been written some seconds ago, and the first one `first` seconds ago."""
    _, at, content = r.hget(PREFIX + name, start).split(" ", 2)
    began = float(at) - (seconds if first is None else first)
    r.hset(PREFIX + name, start, f"{began} {float(at) - seconds} {content}")
    r.zadd(INDEX, {name: float(at) - seconds})


def test_a_heartbeat_is_read_back_with_what_it_says_of_listeners(r, redis_client):
    listener = ListenerSign(group="shop-mail", listener="mail", state="paused", in_flight=3, doing="x", doing_for=1.5)
    heartbeats.beat(redis_client, "a", sign(host="h", pid=7, code_version="c\nd", listeners=[listener]))
    (found,) = heartbeats.read(redis_client)
    assert found.process == sign(host="h", pid=7, code_version="c\nd", listeners=[listener])
    assert 0 <= found.age < 5
    assert heartbeats.of_listener([found], "shop-mail") == [(found, listener)]
    assert heartbeats.of_listener([found], "shop-other") == []


def test_processes_of_all_services_are_read_in_the_order_of_their_names(r, redis_client):
    for service, name in (("shop", "b"), ("stock", "a"), ("shop", "a")):
        heartbeats.beat(redis_client, "x", sign(name, service))
    assert [(each.process.service_name, each.process.process_name) for each in heartbeats.read(redis_client)] == [
        ("shop", "a"),
        ("shop", "b"),
        ("stock", "a"),
    ]


def test_nothing_is_read_where_nobody_writes(r, redis_client):
    assert heartbeats.read(redis_client) == []


def test_one_that_ends_is_gone_at_once(r, redis_client):
    heartbeats.beat(redis_client, "a", sign())
    heartbeats.end(redis_client, "a", sign())
    assert heartbeats.read(redis_client) == []


def test_keys_expire_and_old_ones_are_cleared_by_the_next_heartbeat(r, redis_client):
    heartbeats.beat(redis_client, "a", sign())
    heartbeats.beat(redis_client, "a", sign("gone"))
    for key in (PREFIX + "shop/web1", INDEX):
        assert 0 < r.ttl(key) <= heartbeats.EXPIRY
    age(r, "a", heartbeats.EXPIRY + 5)
    age(r, "a", heartbeats.EXPIRY + 5, "shop/gone")
    assert heartbeats.read(redis_client) == []
    heartbeats.beat(redis_client, "b", sign())
    assert stored(r).keys() == {"b"}
    assert r.zrange(INDEX, 0, -1) == ["shop/web1"]


class TestTwoUnderOneName:
    def test_each_is_told_of_the_other_once_both_have_been_renewed(self, r, redis_client):
        assert heartbeats.beat(redis_client, "a", sign(host="one")) == []
        age(r, "a", 7)
        assert heartbeats.beat(redis_client, "b", sign(host="two")) == []
        age(r, "b", 5)
        assert heartbeats.beat(redis_client, "a", sign(host="one")) == []
        (other,) = heartbeats.beat(redis_client, "b", sign(host="two"))
        assert other.process.host == "one"
        (other,) = heartbeats.beat(redis_client, "a", sign(host="one"))
        assert other.process.host == "two"

    def test_and_again_with_each_further_one(self, r, redis_client):
        for _ in range(3):
            heartbeats.beat(redis_client, "a", sign())
            heartbeats.beat(redis_client, "b", sign())
            age(r, "a", 1, first=100)
            age(r, "b", 1, first=50)
        assert len(heartbeats.beat(redis_client, "a", sign())) == 1

    def test_a_process_that_was_killed_and_comes_back_is_no_such_case(self, r, redis_client):
        heartbeats.beat(redis_client, "killed", sign())
        age(r, "killed", 2, first=1000)
        for _ in range(3):
            assert heartbeats.beat(redis_client, "back", sign()) == []
            age(r, "back", 1)
        assert [each.first_at == each.at for each in heartbeats.read(redis_client)] == [True]

    def test_other_names_and_services_are_others(self, r, redis_client):
        for start, each in (("a", sign()), ("b", sign("web2")), ("c", sign(service="stock"))):
            heartbeats.beat(redis_client, start, each)
        assert heartbeats.beat(redis_client, "a", sign()) == []

    @pytest.mark.parametrize(
        ("one", "other", "expected"),
        [
            ((0, 20), (5, 18), True),
            ((0, 5), (5, 18), False),
            ((0, 4), (5, 18), False),
            ((0, 20), (5, 5), False),
        ],
    )
    def test_both_were_renewed_after_the_later_start(self, one, other, expected):
        first, second = (Heartbeat(sign(), *times, 20) for times in (one, other))
        assert heartbeats.are_doubles(first, second) is expected
        assert heartbeats.are_doubles(second, first) is expected
        assert not heartbeats.are_doubles(first, first)


def test_one_that_was_replaced_is_not_read_but_doubles_are(r, redis_client):
    heartbeats.beat(redis_client, "a", sign(pid=1))
    age(r, "a", 8, first=20)
    heartbeats.beat(redis_client, "b", sign(pid=2))
    assert [each.process.pid for each in heartbeats.read(redis_client)] == [2]
    heartbeats.beat(redis_client, "a", sign(pid=1))
    assert [each.process.pid for each in heartbeats.read(redis_client)] == [1, 2]


def test_what_a_later_version_wrote_and_nobody_can_read_is_left_out(r, redis_client):
    heartbeats.beat(redis_client, "a", sign())
    r.hset(PREFIX + "shop/web1", "b", '1.0 99999999999.0 {"service_name": 5}')
    assert len(heartbeats.read(redis_client)) == 1
    assert heartbeats.beat(redis_client, "a", sign()) == []
