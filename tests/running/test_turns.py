"""Whose turn it is among listeners that share threads."""

import threading
import time

import pytest

from lightbus_django import listens_to
from lightbus_django.conf import get_settings
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.registry import registry
from lightbus_django.running import turns as module
from lightbus_django.running.health import Health
from lightbus_django.running.turn import TurnState
from lightbus_django.running.turns import Turns

KEY = "shop.*:stream"

pytestmark = pytest.mark.django_db


@pytest.fixture
def turns(r, listeners, redis_client, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 0.01)
    for name in ("one", "two"):
        listens_to("shop.order_placed", listener_name=name)(lambda event: None)
    options = {"service_name": "shop", "process_name": "p", "settings": get_settings(), "client": redis_client}
    consumers = [Consumer(listener, **options) for listener in registry]
    return Turns({each: Health(each.group, redis_client) for each in consumers}, threading.Event())


def waiting(turns):
    """Let both listeners wait for events; return their turns."""
    both = [turns.next(), turns.next()]
    for turn in both:
        turns.end(turn, has_more=False)
        turn.due_at = time.monotonic() + 3600
    return both


def test_all_are_ready_at_first_and_in_turn(turns):
    one, two = turns.next(), turns.next()
    assert {one.consumer.group, two.consumer.group} == {"shop-one", "shop-two"}
    assert turns.next() is None
    turns.end(two, has_more=True)
    turns.end(one, has_more=True)
    assert [turns.next(), turns.next()] == [two, one]


def test_new_entries_wake_those_that_wait(turns):
    both = waiting(turns)
    assert turns.next() is None
    assert turns.has_waiting(KEY)
    assert turns.wake(KEY)
    assert not turns.has_waiting(KEY)
    assert not turns.wake(KEY)
    assert [turns.next(), turns.next(), turns.next()] == [*both, None]


def test_what_arrives_while_it_runs_gives_it_another_turn(turns):
    one, _ = waiting(turns)
    turns.wake(KEY)
    assert turns.next() is one
    turns.next()
    assert not turns.wake(KEY)
    turns.end(one, has_more=False)
    assert turns.next() is one
    turns.end(one, has_more=False)
    assert one.state is TurnState.WAITING


def test_after_an_error_it_waits_for_its_delay_whatever_arrives(turns):
    one, _ = waiting(turns)
    turns.wake(KEY)
    turns.next()

    def fail():
        raise ValueError

    assert not one.attempts.run(fail)
    turns.end(one, has_more=True)
    turns.next()
    assert not turns.wake(KEY)
    assert one.state is TurnState.DELAYED
    one.due_at = 0
    module.BLOCK = 10
    assert turns.next() is one


def test_a_retry_or_a_pause_is_reason_enough(turns):
    one, two = waiting(turns)
    module.BLOCK = 10
    two.consumer.retries_due.set()
    assert turns.next() is two
    one.consumer.pause.begin("the test")
    assert turns.next() is one


def test_each_is_stopped_once_and_those_that_run_not(turns):
    one = turns.next()
    stopped = [turns.next_to_stop(), turns.next_to_stop()]
    assert stopped[0] is not one
    assert stopped[1] is None
    turns.end(one, has_more=False)
    assert turns.next_to_stop() is one
