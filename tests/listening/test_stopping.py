"""What a stopping consumer acknowledges, and what it releases to other processes."""

import pytest

from lightbus_django import fire, listens_to
from lightbus_django.exceptions import DatabaseUnavailable
from tests.app.models import Effect
from tests.conftest import drain
from tests.listening.streams import GROUP, KEY, effects, fetch, pending

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


class TestStop:
    def test_what_is_settled_is_acknowledged_and_the_rest_is_another_process_at_once(self, r, listeners, consume):
        @listens_to("shop.order_placed")
        def record(event, number):
            Effect.objects.create(number=number)
            consumer.stopping.set()

        consumer = consume(process_name="first")
        second = consume(process_name="second")
        for number in range(5):
            fire("shop.order_placed", number=number)
        consumer.step(block=0)
        consumer.stop()
        assert effects() == [0]
        assert pending(r) == 4
        while second.step(now=1e9, block=0):
            pass
        assert effects() == [0, 1, 2, 3, 4]
        assert pending(r) == 1 or second.reader.flush() is None

    def test_what_is_left_is_handed_back_though_redis_gave_up_the_connection_during_the_handler(
        self, r, listeners, consume
    ):
        @listens_to("shop.order_placed")
        def record(event, number):
            r.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            consumer.stopping.set()

        consumer = consume()
        for number in range(2):
            fire("shop.order_placed", number=number)
        consumer.step(block=0)
        consumer.stop()
        assert [row["times_delivered"] for row in r.xpending_range(KEY, GROUP, "-", "+", 10)] == [0]

    def test_what_is_left_is_handed_back_though_the_database_is_away(self, r, record, consume, monkeypatch):
        def refuse():
            raise DatabaseUnavailable("away")

        consumer = consume()
        fire("shop.order_placed", number=0)
        consumer.step(block=0)
        monkeypatch.setattr(consumer.inbox, "give_back", refuse)
        with pytest.raises(DatabaseUnavailable):
            consumer.stop()
        assert pending(r) == 0

    def test_what_is_handed_back_untouched_was_never_delivered(self, r, record, consume, monkeypatch):
        consumer = consume()
        for number in range(2):
            fire("shop.order_placed", number=number)
        consumer.inbox.handle = lambda *args, **kwargs: 1
        consumer.step(block=0)
        consumer.stop()
        assert [row["times_delivered"] for row in r.xpending_range(KEY, GROUP, "-", "+", 10)] == [0]

    def test_under_a_name_that_does_not_come_back_nothing_is_left_behind(self, r, listeners, consume):
        @listens_to("shop.order_placed")
        def record(event, number):
            Effect.objects.create(number=number)
            if number == 1:
                consumer.stopping.set()

        def consumers():
            return {row["name"]: row["pending"] for row in r.xinfo_consumers(KEY, GROUP)}

        consumer = consume(process_name="k3f9", leave=True)
        for number in range(4):
            fire("shop.order_placed", number=number)
        consumer.step(block=0)
        consumer.stop()
        assert effects() == [0, 1]
        # A group keeps a consumer, for Lightbus destroys groups that have none.
        assert consumers() == {"nobody": 2}

        other = consume(process_name="x2c7", leave=True)
        drain(other)
        other.stop()
        assert effects() == [0, 1, 2, 3]
        assert consumers() == {"nobody": 0}
        assert r.xinfo_groups(KEY)[0]["pending"] == 0

    def test_what_is_in_hand_keeps_its_name(self, r, record, consume):
        consumer = consume(process_name="k3f9", leave=True)
        fire("shop.order_placed", number=1)
        fetch(r, "k3f9")
        consumer.stop()
        assert [row["name"] for row in r.xinfo_consumers(KEY, GROUP)] == ["k3f9"]
