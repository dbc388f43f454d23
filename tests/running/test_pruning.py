"""Old rows go, a few at a time; what is still needed stays whatever its age."""

from datetime import datetime, timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.utils import timezone
from model_bakery import baker

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from lightbus_django.running import pruning
from tests.app.models import Effect
from tests.conftest import drain

KEY = "shop.*:stream"
DAY = timedelta(days=1)

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


def ago(days):
    return timezone.now() - days * DAY


def prune(housekeeping):
    steps = 0
    while housekeeping.prune():
        steps += 1
    return steps


def test_the_inbox(housekeeping):
    old = baker.make(ProcessedEvent, processed_at=ago(31))
    young = baker.make(ProcessedEvent, processed_at=ago(29))
    prune(housekeeping())
    assert list(ProcessedEvent.objects.all()) == [young], old


def test_the_key_of_a_failed_event_stays_with_it(housekeeping):
    baker.make(ProcessedEvent, event_id="a", consumer_group="g", processed_at=ago(31))
    baker.make(FailedEvent, event_id="a", consumer_group="g", failed_at=ago(31), next_attempt_at=None)
    prune(housekeeping())
    assert ProcessedEvent.objects.count() == 1


def test_dead_letters_are_discarded_by_age_and_retries_are_not(housekeeping):
    for name, next_attempt in (("dead", None), ("retrying", timezone.now())):
        baker.make(ProcessedEvent, event_id=name, consumer_group="g", processed_at=ago(91))
        baker.make(FailedEvent, event_id=name, consumer_group="g", failed_at=ago(91), next_attempt_at=next_attempt)
    baker.make(FailedEvent, event_id="young", consumer_group="g", failed_at=ago(89), next_attempt_at=None)
    pruner = pruning.prune("default", pruning.Cutoffs(inbox=ago(1000), outbox=ago(1000), failed=ago(90)))
    assert list(pruner) == [("dead letters", 1)]
    assert set(FailedEvent.objects.values_list("event_id", flat=True)) == {"retrying", "young"}
    assert set(ProcessedEvent.objects.values_list("event_id", "discarded")) == {("dead", True), ("retrying", False)}


def test_the_outbox_keeps_what_is_not_published(housekeeping):
    baker.make(OutboxEvent, created_at=ago(9), published_at=ago(8), due_at=None)
    waiting = baker.make(OutboxEvent, event_name="shop.a", created_at=ago(9), published_at=None, due_at=ago(-1))
    again = baker.make(OutboxEvent, event_name="shop.a", created_at=ago(9), published_at=ago(6), due_at=None)
    once_more = baker.make(OutboxEvent, event_name="shop.a", created_at=ago(9), published_at=ago(8), due_at=ago(-1))
    prune(housekeeping())
    assert set(OutboxEvent.objects.all()) == {waiting, again, once_more}


def test_it_goes_in_small_chunks(housekeeping, monkeypatch, django_assert_max_num_queries, caplog):
    monkeypatch.setattr(pruning, "CHUNK", 10)
    baker.make(
        ProcessedEvent, processed_at=ago(31), event_id=iter(map(str, range(95))), _quantity=95, _bulk_create=True
    )
    young = baker.make(ProcessedEvent, processed_at=ago(1), event_id=iter(map(str, range(95, 200))), _quantity=100)
    keeper = housekeeping()
    caplog.set_level("INFO")
    assert prune(keeper) >= 10
    assert ProcessedEvent.objects.count() == len(young)
    assert "pruned 95 processed events" in caplog.text
    keeper.relay()  # knows its databases by now
    with django_assert_max_num_queries(8):  # three of them for each of two databases
        assert prune(keeper) <= 1


def test_the_inbox_outlives_the_stream(listeners, consume, housekeeping, r, lightbus):
    """An event that is still in the stream may come again, for instance if its group goes back."""

    @listens_to("shop.order_placed", start="beginning")
    def record(event, number):
        Effect.objects.create(number=number)

    long_ago = int(ago(40).timestamp() * 1000)
    r.xadd(
        KEY, {"id": "x", "api_name": "shop", "event_name": "order_placed", "version": 1, ":number": 1}, f"{long_ago}-0"
    )
    consumer = consume()
    drain(consumer)
    ProcessedEvent.objects.update(processed_at=ago(39))
    baker.make(ProcessedEvent, processed_at=ago(41))
    prune(housekeeping(consumer))
    assert ProcessedEvent.objects.get().event_id == "x"
    r.xgroup_setid(KEY, consumer.group, "0")
    drain(consumer)
    assert Effect.objects.count() == 1
    r.xtrim(KEY, maxlen=0, approximate=False)
    prune(housekeeping(consumer))
    assert ProcessedEvent.objects.count() == 0


def test_the_cutoff_of_the_inbox_is_earlier_if_the_stream_has_old_events(listeners, r, capsys):
    @listens_to("shop.order_placed")
    def record(event):
        raise NotImplementedError

    def cutoff(table):
        call_command("lightbus_prune", "--cutoff", table)
        return datetime.fromisoformat(capsys.readouterr().out.strip())

    minute = timedelta(minutes=1)
    assert ago(30) - minute < cutoff("inbox") < ago(30) + minute
    assert ago(7) - minute < cutoff("outbox") < ago(7) + minute
    r.xadd(KEY, {"id": "x"}, f"{int(ago(40).timestamp() * 1000)}-0")
    assert ago(47) - 2 * pruning.SKEW < cutoff("inbox") < ago(47)
    assert ago(7) - minute < cutoff("outbox") < ago(7) + minute


def test_a_database_that_fails_is_tried_again(housekeeping):
    baker.make(ProcessedEvent, processed_at=ago(31))
    keeper = housekeeping()

    def fail(execute, sql, *arguments):
        if sql.startswith("DELETE"):
            raise OperationalError("gone")
        return execute(sql, *arguments)

    with connection.execute_wrapper(fail), pytest.raises(OperationalError):
        prune(keeper)
    prune(keeper)
    assert ProcessedEvent.objects.count() == 0


class TestCommand:
    def test_deletes_what_is_old(self, capsys):
        baker.make(ProcessedEvent, processed_at=ago(31))
        baker.make(OutboxEvent, created_at=ago(8), published_at=ago(8), due_at=None)
        baker.make(FailedEvent, failed_at=ago(91), next_attempt_at=None)
        call_command("lightbus_prune")
        assert capsys.readouterr().out == "Deleted 1 dead letters, 1 processed events, 1 published events.\n"

    def test_needs_redis_to_know_what_the_streams_hold(self, listeners, lightbus):
        @listens_to("shop.order_placed")
        def record(event): ...

        lightbus(URL="redis://:secret@127.0.0.1:1/0")
        with pytest.raises(CommandError, match="not available"):
            call_command("lightbus_prune")


def test_what_can_come_again_outlives_its_key_in_no_setting(lightbus, settings):
    from django.core.checks import run_checks

    lightbus(INBOX_RETENTION=3600, OUTBOX_RETENTION=60)
    (error,) = [message for message in run_checks(tags=["lightbus"]) if message.id == "lightbus_django.E006"]
    assert "INBOX_RETENTION" in error.msg
    assert "STREAM_RETENTION" in error.msg


class TestKeysOutliveTheirEvents:
    def test_a_quiet_stream_keeps_no_keys_of_a_busy_one(self, listeners, consume, housekeeping, r):
        @listens_to(["shop.order_placed", "quiet.order_placed"], start="beginning")
        def record(event, number): ...

        quiet = {"id": "quiet", "api_name": "quiet", "event_name": "order_placed", "version": 1, ":number": 1}
        r.xadd("quiet.*:stream", quiet, id=f"{int(ago(400).timestamp() * 1000)}-0")
        consumer = consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        drain(consumer)
        r.xtrim(KEY, maxlen=0, approximate=False)
        ProcessedEvent.objects.update(processed_at=ago(100))
        prune(housekeeping(consumer))
        assert ProcessedEvent.objects.get().event_id == "quiet"

    def test_an_event_may_have_been_published_again_since(self, listeners, consume, housekeeping, r):
        @listens_to("shop.order_placed", start="beginning")
        def record(event, number):
            Effect.objects.create(number=number)

        event = on_commit("shop.order_placed", number=1)
        consumer = consume()
        drain(consumer)
        ProcessedEvent.objects.update(processed_at=ago(31))
        fields = r.xrange(KEY)[0][1]
        r.delete(KEY)
        r.xgroup_create(KEY, consumer.group, "0", mkstream=True)
        r.xadd(KEY, fields, id=f"{int(ago(25).timestamp() * 1000)}-0")
        assert fields["id"] == event.id
        prune(housekeeping(consumer))
        drain(consumer)
        assert Effect.objects.count() == 1

    def test_a_row_of_the_outbox_gets_no_older_by_being_published_again(self, r, housekeeping):
        row = baker.make(
            OutboxEvent,
            event_name="shop.order_placed",
            payload="{}",
            published_at=ago(6),
            created_at=ago(6),
            due_at=None,
        )
        OutboxEvent.objects.publish_again()
        housekeeping().relay()
        assert r.xlen(KEY) == 1
        before = row.published_at
        row.refresh_from_db()
        assert (row.due_at, row.published_at) == (None, before)

    def test_a_retry_that_succeeds_meanwhile(self):
        baker.make(ProcessedEvent, event_id="a", consumer_group="g", processed_at=ago(31))

        def renew(execute, sql, *arguments):
            if sql.startswith("DELETE"):
                with connection.cursor() as cursor:
                    execute("UPDATE lightbus_django_processedevent SET processed_at = %s", [timezone.now()], False, {
                        "connection": connection, "cursor": cursor
                    })  # fmt: skip
            return execute(sql, *arguments)

        steps = pruning.prune("default", pruning.Cutoffs(inbox=ago(30), outbox=ago(7), failed=ago(90)))
        with connection.execute_wrapper(renew):
            list(steps)
        assert ProcessedEvent.objects.count() == 1


def test_a_dead_letter_is_as_old_as_its_last_attempt(listeners, consume, housekeeping):
    @listens_to("shop.order_placed", start="beginning")
    def record(event):
        raise ValueError

    fire("shop.order_placed")
    consumer = consume()
    drain(consumer)
    FailedEvent.objects.update(failed_at=ago(91), attempts=4, next_attempt_at=ago(1))
    assert consumer.inbox.retry(timezone.now())
    assert FailedEvent.objects.get().is_dead_letter
    prune(housekeeping(consumer))
    assert FailedEvent.objects.count() == 1


def test_a_dead_letter_that_goes_counts_as_discarded(housekeeping):
    baker.make(ProcessedEvent, event_id="a", consumer_group="g", processed_at=ago(91))
    baker.make(FailedEvent, event_id="a", consumer_group="g", failed_at=ago(91), next_attempt_at=None)
    prune(housekeeping())
    assert ProcessedEvent.objects.get().discarded
