"""Deferred commits are made durable before their events are acknowledged."""

import time

import pytest
from django.db import transaction

from lightbus_django import listens_to
from lightbus_django.models import ProcessedEvent
from tests.app.models import Effect
from tests.listening.handling import (
    deliver,
    effects,
    execute,
    inbox,
    of_postgresql,
    value,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


@of_postgresql
class TestDeferredCommits:
    """Several events wait for the disk together, before any of them is acknowledged."""

    def handle(self, do=lambda: None, *, count=2, defer=True, **options):
        """Handle events; return whether commits wait for `confirm`."""

        @listens_to("shop.order_placed", **options)
        def handler(event, number):
            do()
            Effect.objects.create(number=number)

        box = inbox()
        assert box.handle([deliver(number) for number in range(count)], defer=defer) == count
        waits = bool(box._gate.unproven)
        assert box.confirm()
        assert not box._gate.unproven
        assert effects() == list(range(count))
        return waits

    def test_they_do(self):
        assert self.handle()
        assert value("SHOW synchronous_commit") == "on"  # for the session, nothing has changed

    def test_not_where_there_is_one(self):
        assert not self.handle(defer=False)

    def test_not_if_the_listener_says_so(self):
        assert not self.handle(defer_commits=False)

    def test_not_if_the_setting_says_so(self, lightbus):
        lightbus(DEFER_COMMITS=False)
        assert not self.handle()

    def test_not_if_something_waits_for_the_commit(self):
        assert not self.handle(lambda: transaction.on_commit(lambda: None))

    def test_not_if_the_handler_is_slow(self, monkeypatch):
        monkeypatch.setattr("lightbus_django.listening.commit_gate.SLOW", 0.01)
        assert not self.handle(lambda: time.sleep(0.02))

    def test_not_after_a_while(self, monkeypatch):
        monkeypatch.setattr("lightbus_django.listening.commit_gate.WINDOW", 0)
        assert not self.handle(count=1)

    @pytest.mark.parametrize("way", ["SET LOCAL", "SET"])
    def test_not_if_the_handler_has_a_setting_of_its_own(self, way):
        try:
            assert not self.handle(lambda: execute(f"{way} synchronous_commit = local"))
        finally:
            execute("RESET synchronous_commit")

    def test_what_a_handler_defers_itself_is_proved_too(self):
        assert self.handle(lambda: execute("SET LOCAL synchronous_commit = off"), defer=False)

    def test_what_follows_a_handler_s_own_commit_waits_for_the_disk(self):
        """Its key would be there, whatever became of that."""
        assert not self.handle(lambda: execute("COMMIT"), count=1)

    def test_what_a_batch_handler_defers_is_proved_too(self):
        @listens_to("shop.order_placed", batch=True)
        def handler(events):
            execute("SET LOCAL synchronous_commit = off")

        box = inbox()
        assert box.handle([deliver(1), deliver(2)]) == 2
        assert box._gate.unproven
        assert box.confirm()

    def test_what_was_found_is_proved_too(self):
        assert self.handle()
        box = inbox()
        one = deliver(7)
        box.handle([one])
        assert not box._gate.unproven
        box.handle([one])
        assert box._gate.unproven
        assert box.confirm()

    def test_what_is_lost_is_not_confirmed(self):
        @listens_to("shop.order_placed")
        def handler(event, number):
            Effect.objects.create(number=number)

        box, deliveries = inbox(), [deliver(1), deliver(2)]
        assert box.handle(deliveries, defer=True) == 2
        ProcessedEvent.objects.filter(event_id=deliveries[0].key).delete()  # as a crash does
        Effect.objects.filter(number=1).delete()
        assert not box.confirm()
        assert box.handle(deliveries, defer=True) == 2
        assert box.confirm()
        assert effects() == [1, 2]
