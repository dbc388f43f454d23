"""Failed events of groups without a listener: they are reported, and retiring the group ends their retries."""

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from model_bakery import baker

from lightbus_django import fire, listens_to
from lightbus_django.bus import streams
from lightbus_django.models import ConsumerGroup, FailedEvent, ProcessedEvent
from tests.conftest import drain

KEY = "shop.*:stream"
GROUP = "price-monitor-fails"

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


def declare(name="fails", **options):
    @listens_to("shop.order_placed", listener_name=name, **options)
    def fails(event):
        raise ValueError


@pytest.fixture
def fail(listeners, consume):
    """Let a listener fail with some events, then remove it, as a deployment may do."""

    def fail(count=3, service_name="price-monitor", **options):
        declare(**options)
        (listener,) = listeners
        consumer = consume(listener, service_name=service_name)
        for _ in range(count):
            fire("shop.order_placed")
        drain(consumer)
        consumer.stop()
        listeners.remove(listener)
        return listener

    return fail


@pytest.fixture
def report(housekeeping, caplog):
    def report():
        caplog.clear()
        for database in housekeeping().databases:
            database.detect_outbox()
            database.warn_of_orphaned_groups()
        return [message for message in caplog.messages if "are not retried" in message]

    return report


def failed(using="default"):
    rows = FailedEvent.objects.using(using).order_by("pk")
    return ["dead" if row.is_dead_letter else "retrying" for row in rows]


def retire(*options):
    call_command("lightbus_retire", GROUP, "--no-input", *options)


class TestReport:
    def test_names_group_and_count(self, fail, report):
        fail()
        (line,) = report()
        assert line.startswith(f"{GROUP}: 3 failed events in database 'default' are not retried")
        assert line.endswith(f"manage.py lightbus_retire {GROUP}")

    def test_is_made_periodically(self, fail, housekeeping, caplog):
        fail()
        keeper = housekeeping()
        for hour in range(12):
            keeper.step(now=1e6 + 3600.0 * hour)
        assert caplog.text.count("are not retried") == 2

    def test_covers_every_database(self, fail, report):
        fail(using="other")
        (line,) = report()
        assert "in database 'other'" in line

    def test_leaves_out_listeners_that_are_there(self, fail, report, listeners):
        listeners.add(fail())
        assert report() == []

    def test_but_not_in_a_database_that_they_no_longer_use(self, fail, report):
        """A deployment has moved it to another database."""
        fail()
        declare(using="other")
        (line,) = report()
        assert "in database 'default'" in line

    def test_leaves_out_other_services_that_share_the_database(self, fail, report):
        fail(service_name="shop")
        fail(service_name="price-monitor-2")
        assert report() == []

    def test_names_a_group_in_the_service_that_had_it_last(self, fail, report):
        fail(service_name="shop", consumer_group=GROUP)
        assert report() == []
        fail(consumer_group=GROUP, count=1)
        (line,) = report()
        assert f"{GROUP}: 4 failed events" in line

    def test_leaves_out_dead_letters_and_unknown_groups(self, fail, report):
        fail()
        FailedEvent.objects.update(next_attempt_at=None)
        baker.make(FailedEvent, consumer_group="price-monitor-unknown", next_attempt_at=timezone.now())
        assert report() == []


class TestList:
    def test_shows_groups_without_a_listener(self, fail, capsys):
        fail(count=5)
        FailedEvent.objects.filter(pk__in=list(FailedEvent.objects.values_list("pk", flat=True)[:2])).update(
            next_attempt_at=None
        )
        fail(count=1, service_name="shop")
        baker.make(FailedEvent, consumer_group="price-monitor-unknown", next_attempt_at=timezone.now(), _using="other")
        declare("there")
        baker.make(FailedEvent, consumer_group="price-monitor-there", next_attempt_at=timezone.now())
        call_command("lightbus_retire")
        _, text, output = capsys.readouterr().out.partition("Failed events of groups without a listener")
        assert text
        rows = [line.split() for line in output.splitlines() if "price-monitor" in line or "shop" in line]
        assert rows == [[GROUP, "default", "3", "2"], ["price-monitor-unknown", "other", "1", "0"]]


class TestRetire:
    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch):
        monkeypatch.setattr(streams, "RETIRE_AFTER", 0)

    def test_makes_retries_dead_letters(self, fail, r, capsys):
        fail()
        FailedEvent.objects.update(failed_at=timezone.now() - timedelta(days=100))
        retire("--idle", "0")
        assert failed() == ["dead"] * 3
        assert "Turned 3 retries of 'price-monitor-fails' in database 'default' into dead letters" in (
            capsys.readouterr().out
        )
        assert r.xinfo_groups(KEY) == []
        assert not ConsumerGroup.objects.exists()
        assert ProcessedEvent.objects.count() == 3
        assert FailedEvent.objects.filter(failed_at__gt=timezone.now() - timedelta(minutes=5)).count() == 3

    def test_in_every_database(self, fail):
        fail(using="other", count=1)
        retire("--idle", "0")
        assert failed("other") == ["dead"]

    def test_works_though_redis_does_not_know_the_group(self, fail, r):
        fail(count=1)
        r.flushdb()
        retire("--idle", "0")
        assert failed() == ["dead"]
        with pytest.raises(CommandError, match="There is no consumer group"):
            retire("--idle", "0")

    def test_of_a_group_of_the_previous_version(self):
        baker.make(FailedEvent, consumer_group=GROUP, next_attempt_at=timezone.now())
        retire()
        assert failed() == ["dead"]

    def test_refuses_a_group_whose_process_was_seen_lately(self, fail, r):
        """Redis may have lost the group, and the process is about to create it."""
        fail(count=1)
        r.flushdb()
        with pytest.raises(CommandError, match="'price-monitor-fails' is in use"):
            retire("--idle", "60")
        assert failed() == ["retrying"]

    def test_refuses_a_group_that_is_in_use(self, fail):
        fail(count=1)
        with pytest.raises(CommandError, match="is in use"):
            retire("--idle", "60")
        assert failed() == ["retrying"]

    def test_of_one_stream(self, fail, r):
        fail(count=1)
        baker.make(FailedEvent, consumer_group=GROUP, stream="billing.*:stream", next_attempt_at=timezone.now())
        retire("--idle", "0", "--stream", KEY)
        assert failed() == ["dead", "retrying"]

    def test_of_another_group(self, fail):
        fail(count=1)
        baker.make(FailedEvent, consumer_group="price-monitor-fails-2", next_attempt_at=timezone.now())
        retire("--idle", "0")
        assert failed() == ["dead", "retrying"]

    def test_the_confirmation_counts_the_retries(self, fail, monkeypatch):
        fail(count=2)
        questions = []
        monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "n")
        with pytest.raises(CommandError, match="nothing was destroyed"):
            call_command("lightbus_retire", GROUP, "--idle", "0")
        assert "2 failed events won't be retried any more" in questions[0]
        assert failed() == ["retrying"] * 2
