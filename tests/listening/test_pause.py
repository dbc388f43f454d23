"""A paused listener rests in all processes, loses nothing, and goes on in order."""

import threading

import pytest
from django.core.management import call_command

from lightbus_django import BusUnavailable, fire, listens_to
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.state import State
from lightbus_django.models import ConsumerGroup, FailedEvent
from tests.app.models import Effect
from tests.conftest import drain, eventually
from tests.listening.handling import at_first, deliveries, fire_orders, handled, listen
from tests.listening.streams import effects, pending
from tests.workers import running_worker

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners"),
]

GROUP = "price-monitor-record"


def pause():
    assert ConsumerGroup.objects.filter(consumer_group=GROUP).pause("Ada") == 1


def resume():
    assert ConsumerGroup.objects.filter(consumer_group=GROUP).resume() == 1


def rests(consumer: Consumer) -> bool:
    assert consumer.step(block=0) is False
    return consumer.state is State.PAUSED


class TestAConsumer:
    def test_handles_nothing_while_it_is_paused(self, r, record, consume):
        consumer = consume()
        fire("shop.order_placed", number=1)
        consumer.pause.begin("Ada")
        assert rests(consumer)
        assert rests(consumer)
        assert effects() == []
        assert pending(r) == 0
        consumer.pause.end()
        drain(consumer)
        assert effects() == [1]
        assert consumer.state is State.READING

    def test_releases_what_it_has_and_goes_on_in_order_and_with_the_same_attempts(self, r, consume, lightbus):
        lightbus(BATCH_SIZE=5)
        consumers: list[Consumer] = []
        listen(after=lambda number: number == 2 and not effects()[3:] and consumers[0].pause.begin("Ada"))
        consumers.append(consume())
        fire_orders(10)
        consumers[0].step(block=0)
        assert effects() == [0, 1, 2]
        assert rests(consumers[0])
        assert consumers[0].in_flight.leased == ()
        assert deliveries(r) == [0, 0]
        consumers[0].pause.end()
        drain(consumers[0])
        assert effects() == list(range(10))
        assert handled() == at_first(10)
        assert pending(r) == 0

    def test_another_process_can_take_over_what_it_released(self, r, consume):
        consumers: list[Consumer] = []
        listen(after=lambda number: number == 0 and consumers[0].pause.begin("Ada"))
        consumers.append(consume(process_name="one"))
        fire_orders(3)
        consumers[0].step(block=0)
        assert rests(consumers[0])
        drain(consume(process_name="two"))
        assert handled() == at_first(3)

    def test_lets_retries_rest_too(self, r, consume):
        broken = [True]

        @listens_to("shop.order_placed", start="beginning")
        def record(event, number):
            if broken:
                raise ValueError("broken")
            Effect.objects.create(number=number)

        consumer = consume()
        fire_orders(1)
        drain(consumer)
        broken.clear()
        FailedEvent.objects.retry_now()
        consumer.retries_due.set()
        consumer.pause.begin("Ada")
        assert rests(consumer)
        assert FailedEvent.objects.get().attempts == 0
        consumer.pause.end()
        drain(consumer)
        assert effects() == [0]
        assert not FailedEvent.objects.exists()

    def test_gives_up_the_claim_on_a_retry_that_could_not_be_made(self, r, consume):
        error: list[Exception] = [ValueError("broken")]

        @listens_to("shop.order_placed", start="beginning")
        def record(event, number):
            raise error[0]

        consumer = consume()
        fire_orders(1)
        drain(consumer)
        error[0] = BusUnavailable("away")
        FailedEvent.objects.retry_now()
        consumer.retries_due.set()
        with pytest.raises(BusUnavailable):
            consumer.step(block=0)
        assert FailedEvent.objects.get().attempts == 1
        consumer.pause.begin("Ada")
        assert rests(consumer)
        assert FailedEvent.objects.get().attempts == 0

    def test_of_a_paused_group_handles_nothing_from_its_first_step_on(self, r, record, consume):
        drain(consume())
        pause()
        fire("shop.order_placed", number=1)
        consumer = consume(process_name="restarted", join=False)
        assert rests(consumer)
        assert consumer.pause.by == "Ada"
        assert effects() == []

    def test_that_is_paused_before_it_joins_misses_nothing_that_is_fired_meanwhile(self, r, record, consume):
        consumer = consume(join=False)
        consumer.pause.begin("Ada")
        assert rests(consumer)
        fire("shop.order_placed", number=1)
        consumer.pause.end()
        drain(consumer)
        assert effects() == [1]

    def test_that_is_paused_can_be_stopped(self, r, record, consume):
        consumer = consume(leave=True)
        fire("shop.order_placed", number=1)
        consumer.pause.begin("Ada")
        assert rests(consumer)
        consumer.stop()
        assert consumer.state is State.STOPPED
        drain(consume())
        assert effects() == [1]

    def test_waits_without_being_busy_until_it_is_stopped(self, r, record, consume):
        consumer = consume()
        consumer.pause.begin("Ada")
        thread = threading.Thread(target=lambda: consumer.step(block=60))
        thread.start()
        consumer.stopping.set()
        thread.join(10)
        assert not thread.is_alive()


def test_a_worker_follows_within_seconds(r, record):
    with running_worker():
        eventually(lambda: ConsumerGroup.objects.filter(consumer_group=GROUP).exists())
        fire("shop.order_placed", number=1)
        eventually(lambda: effects() == [1])
        call_command("lightbus_pause", "record", "--by", "Ada")
        worker_rests(r)
        fire("shop.order_placed", number=2)
        fire("shop.order_placed", number=3)
        assert effects() == [1]
        call_command("lightbus_resume", "record")
        eventually(lambda: effects() == [1, 2, 3])


def worker_rests(r):
    """Wait until the worker's consumer rests, as its heartbeat says."""
    key = "{lightbus_django}:process:price-monitor/worker"
    eventually(lambda: any('"state":"paused"' in value for value in r.hvals(key)))


class TestBurst:
    def test_leaves_a_paused_listener_alone_and_ends(self, r, lightbus):
        listen()
        call_command("lightbus_listen", "--burst")
        pause()
        fire_orders(2)
        call_command("lightbus_listen", "--burst")
        assert effects() == []
        resume()
        call_command("lightbus_listen", "--burst")
        assert effects() == [0, 1]

    def test_ends_although_retries_of_a_paused_listener_are_due(self, r):
        @listens_to("shop.order_placed", start="beginning")
        def record(event, number):
            raise ValueError("broken")

        fire_orders(1)
        call_command("lightbus_listen", "--burst")
        FailedEvent.objects.retry_now()
        pause()
        call_command("lightbus_listen", "--burst")
        assert FailedEvent.objects.get().attempts == 0

    def test_handles_the_events_of_others(self, r):
        listen()

        @listens_to("shop.order_placed", start="beginning")
        def other(event, number):
            Effect.objects.create(name="other", number=number)

        call_command("lightbus_listen", "--burst")
        pause()
        fire_orders(2)
        call_command("lightbus_listen", "--burst")
        assert [effect.name for effect in Effect.objects.all()] == ["other", "other"]
