"""One connection that waits for the new entries of many streams."""

from contextlib import closing

import pytest

from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.stream_watch import StreamWatch
from lightbus_django.exceptions import BusError, BusUnavailable


@pytest.fixture
def watch(r, redis_client):
    with closing(StreamWatch(redis_client)) as watch:
        yield watch


def test_tells_which_streams_have_entries_since_they_were_added(r, watch):
    r.xadd("a", {"number": 1})
    watch.add(["a", "b", "c"])
    assert watch.wait(0.001) == []
    r.xadd("a", {"number": 2})
    r.xadd("c", {"number": 3})
    assert sorted(watch.wait(10)) == ["a", "c"]
    assert watch.wait(0.001) == []
    r.xadd("b", {"number": 4})
    assert watch.wait(10) == ["b"]


def test_each_entry_is_told_until_the_stream_is_dropped(r, watch):
    watch.add(["a", "b"])
    r.xadd("a", {"number": 1})
    r.xadd("a", {"number": 2})
    assert [watch.wait(10), watch.wait(10)] == [["a"], ["a"]]
    r.xadd("a", {"number": 3})
    watch.drop("a")
    r.xadd("b", {"number": 4})
    assert watch.wait(10) == ["b"]
    watch.add(["a"])
    assert watch.wait(0.001) == []


def test_a_key_of_another_type_is_told_again_and_again_and_the_others_as_ever(r, watch):
    r.set("bad", 1)
    watch.add(["a", "bad"])
    assert watch.wait(10) == ["bad"]
    r.xadd("a", {"number": 1})
    assert sorted(watch.wait(10)) == ["a", "bad"]
    assert watch.wait(10) == ["bad"]
    r.delete("bad")
    assert watch.wait(0.001) == []
    r.xadd("bad", {"number": 2})
    assert watch.wait(10) == ["bad"]


def test_streams_of_which_none_can_be_read(r, watch):
    r.set("bad", 1)
    watch.add(["bad"])
    with pytest.raises(BusError, match="'bad' holds something other than a stream"):
        watch.wait(10)


def test_a_server_that_does_not_answer():
    client = RedisClient("redis://127.0.0.1:1", timeout=1, retries=0)
    with closing(StreamWatch(client)) as watch, pytest.raises(BusUnavailable):
        watch.add(["a"])
