"""`on_commit` while Redis is down."""

import socket
import time
from contextlib import closing, suppress

import pytest
from django.db import transaction

from lightbus_django import BusUnavailable, fire, on_commit
from lightbus_django.bus.client import RedisClient, get_client
from lightbus_django.bus.server import PAUSE
from lightbus_django.conf import get_settings
from tests.firing.helpers import KEY, waiting

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class TestRedisIsDown:
    """A request waits for one timeout at most, and does not wait at all while Redis is known to be down."""

    @pytest.fixture
    def frozen(self, lightbus):
        """A server that accepts connections and never answers; returns how many it has accepted."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            lightbus(URL=f"redis://127.0.0.1:{server.getsockname()[1]}/0", REDIS_TIMEOUT=0.2)
            server.setblocking(False)
            taken = []

            def connections_taken():
                with suppress(BlockingIOError):
                    while True:
                        taken.append(server.accept())
                return len(taken)

            yield connections_taken
            for connection, _ in taken:
                connection.close()

    def test_only_the_first_commit_asks(self, frozen):
        for number in range(5):
            with transaction.atomic():
                on_commit("shop.order_placed", number=number)
        assert frozen() == 1
        assert waiting() == 5

    def test_one_commit_asks_after_each_pause(self, frozen):
        settings = get_settings()
        redis_client = get_client(settings.url, settings.redis_timeout)
        on_commit("shop.order_placed", number=0)
        assert frozen() == 1
        soon = time.monotonic() + 1
        assert not redis_client.take_turn(soon)
        assert redis_client.take_turn(soon + PAUSE)
        assert not redis_client.take_turn(soon + PAUSE)  # another commit is asking
        for _ in range(10):
            with pytest.raises(BusUnavailable):
                fire("shop.order_placed", number=1)  # fire() always asks
        # After any number of failures, a commit asks within five seconds.
        assert redis_client.take_turn(time.monotonic() + 5 - get_settings().redis_timeout)

    def test_an_answer_ends_the_pause(self, r, lightbus_url):
        with closing(RedisClient(lightbus_url, timeout=1)) as redis_client:
            redis_client._try_at = time.monotonic() + PAUSE
            assert redis_client.is_down
            assert not redis_client.take_turn()
            redis_client.append(KEY, {"a": "b"})
            assert redis_client.take_turn()
