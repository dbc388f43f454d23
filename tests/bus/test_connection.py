"""Commands that are sent now, and whose replies are read later."""

from contextlib import closing

import pytest

from lightbus_django.bus.connection import PipelinedConnection
from lightbus_django.exceptions import BusError


@pytest.fixture
def connection(r, redis_client):
    with closing(PipelinedConnection(redis_client)) as connection:
        yield connection


def test_the_last_reply_is_returned_and_errors_before_it_are_ignored(r, connection):
    connection.send([("SET", "a", 1), ("XLEN", "a")], "a")
    connection.send([("GET", "a")], "a")
    assert connection.receive() == b"1"
    assert connection.execute(("GET", "b"), "b") is None


def test_a_command_is_sent_without_waiting(r, connection):
    connection.send([("SET", "a", 1)], "a")
    connection.send([("INCR", "a")], "a")
    assert connection.receive() == 2


def test_an_error_names_the_key_and_the_next_command_opens_another_connection(r, connection):
    r.set("a", 1)
    with pytest.raises(BusError, match="the key 'a' holds something other than a stream"):
        connection.execute(("XLEN", "a"), "a")
    assert connection.execute(("GET", "a"), "a") == b"1"
