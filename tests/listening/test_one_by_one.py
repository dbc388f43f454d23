"""What is scoped to a transaction ends with its event."""

import pytest

from lightbus_django import listens_to
from lightbus_django.models import FailedEvent
from tests.app.models import Effect
from tests.listening.handling import (
    deliver,
    effects,
    execute,
    handle_all,
    inbox,
    of_postgresql,
    value,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


@of_postgresql
class TestWhatIsScopedToATransaction:
    """Is gone with it: the next event knows nothing of it."""

    def seen_by_the_next(self, before, look):
        seen = []

        @listens_to("shop.order_placed")
        def handler(event, number):
            seen.append(look())
            before()
            Effect.objects.create(number=number)

        first = look()
        handle_all(inbox(), [deliver(number) for number in range(3)])
        assert effects() == [0, 1, 2]
        assert not FailedEvent.objects.exists()
        assert seen == [first] * 3

    @pytest.mark.parametrize(
        "statement", ["SET LOCAL lock_timeout = '7s'", "SELECT set_config('lock_timeout', '7s', true)"]
    )
    def test_a_setting(self, statement):
        self.seen_by_the_next(lambda: execute(statement), lambda: value("SHOW lock_timeout"))

    def test_a_table(self):
        self.seen_by_the_next(
            lambda: execute("CREATE TEMPORARY TABLE tests_scratch (number integer) ON COMMIT DROP"),
            lambda: value("SELECT to_regclass('pg_temp.tests_scratch')"),
        )

    def test_a_lock(self):
        self.seen_by_the_next(
            lambda: execute("SELECT pg_advisory_xact_lock(4711)"),
            lambda: value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711"),
        )

    def test_its_time(self):
        times = []

        @listens_to("shop.order_placed")
        def handler(event, number):
            times.append(value("SELECT now()"))

        handle_all(inbox(), [deliver(number) for number in range(3)])
        assert len(set(times)) == 3
