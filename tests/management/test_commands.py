"""Commands for the day after: publish again, retire a group."""

import io
import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.bus import streams
from lightbus_django.models import OutboxEvent, ProcessedEvent
from tests.app.models import Effect
from tests.conftest import drain

KEY = "shop.*:stream"

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


def run(capsys, *arguments):
    call_command(*arguments)
    return capsys.readouterr().out


class TestRepublish:
    @pytest.fixture
    def lose_everything(self, r, housekeeping):
        """Empty Redis, once the rows are marked as published."""

        def lose():
            housekeeping().relay()
            r.flushdb()

        return lose

    def test_after_redis_lost_everything_listeners_get_what_they_have_not_handled(
        self, r, lose_everything, listeners, consume, capsys
    ):
        @listens_to("shop.order_placed", start="beginning")
        def record(event, number):
            Effect.objects.create(number=number)

        consumer = consume()
        for number in range(5):
            on_commit("shop.order_placed", number=number)
        drain(consumer)
        for number in range(5, 10):
            on_commit("shop.order_placed", number=number)
        lose_everything()
        assert "10 events published again." in run(capsys, "lightbus_republish", "--since", "1h")
        assert r.xlen(KEY) == 10
        drain(consumer)
        assert sorted(Effect.objects.values_list("number", flat=True)) == list(range(10))

    def test_a_listener_that_starts_after_the_loss_gets_them_too(self, r, lose_everything, listeners, consume, capsys):
        """It is not new: its inbox knows it. So it does not start at what is new."""

        @listens_to("shop.order_placed")
        def record(event, number):
            Effect.objects.create(number=number)

        consumer = consume()
        on_commit("shop.order_placed", number=1)
        drain(consumer)
        on_commit("shop.order_placed", number=2)
        lose_everything()
        run(capsys, "lightbus_republish", "--since", "1h")
        drain(consume(process_name="started later"))
        assert list(Effect.objects.order_by("id").values_list("number", flat=True)) == [1, 2]

    def test_in_order_and_under_the_same_ids(self, r, lose_everything, capsys):
        ids = [on_commit("shop.order_placed", number=number).id for number in range(5)]
        lose_everything()
        run(capsys, "lightbus_republish", "--since", "1h")
        assert [fields["id"] for _, fields in r.xrange(KEY)] == ids

    def test_a_dry_run_only_says_what_there_is(self, r, lose_everything, capsys):
        for number in range(3):
            on_commit("shop.order_placed", number=number)
        on_commit("shop.parcel_sent")
        lose_everything()
        output = run(capsys, "lightbus_republish", "--since", "1h", "--dry-run")
        assert output == "shop.order_placed: 3\nshop.parcel_sent: 1\n4 events would be published again.\n"
        assert not r.exists(KEY)

    def test_limits(self, r, lose_everything, housekeeping, capsys):
        noon = timezone.now() - timedelta(hours=12)
        for number in range(4):
            event = on_commit("shop.order_placed", number=number)
            housekeeping().relay()
            OutboxEvent.objects.filter(pk=event.id).update(published_at=noon + timedelta(hours=number))
        on_commit("shop.parcel_sent")
        lose_everything()
        since = (noon + timedelta(hours=1)).isoformat()
        until = (noon + timedelta(hours=3)).isoformat()
        run(capsys, "lightbus_republish", "--since", since, "--until", until, "--event", "shop.order_placed")
        assert [json.loads(fields[":number"]) for _, fields in r.xrange(KEY)] == [1, 2]

    def test_what_was_never_published_is_the_relays(self, r, lightbus, lightbus_url, capsys):
        lightbus(URL="redis://127.0.0.1:1/0")
        on_commit("shop.order_placed", number=1)
        lightbus(URL=lightbus_url)
        assert "The outbox has no such events" in run(capsys, "lightbus_republish", "--since", "1h")

    def test_redis_that_is_away_is_no_loss(self, r, lightbus, housekeeping):
        on_commit("shop.order_placed", number=1)
        housekeeping().relay()
        lightbus(URL="redis://127.0.0.1:1/0")
        with pytest.raises(CommandError, match=r"0 of 1 events were published again, then: .*not available"):
            call_command("lightbus_republish", "--since", "1h")

    @pytest.mark.parametrize("text", ["yesterday", "", "1w", "2026-13-01T00:00"])
    def test_says_what_a_time_looks_like(self, text):
        with pytest.raises(CommandError, match="is not a time"):
            call_command("lightbus_republish", "--since", text)


class TestRetire:
    @pytest.fixture
    def groups(self, r):
        fire("shop.order_placed", number=1)
        r.xgroup_create(KEY, "shop-gone", "0")
        r.xgroup_create(KEY, "shop-here", "0")
        r.xreadgroup("shop-here", "worker", {KEY: ">"})
        return lambda: {row["name"] for row in r.xinfo_groups(KEY)}

    def test_lists_the_groups(self, groups, capsys):
        output = run(capsys, "lightbus_retire")
        assert "shop-gone" in output
        assert "shop-here" in output

    def test_shows_names_as_they_are(self, r, capsys):
        names = ["shop-send-price-alerts-to-customers-of-the-north", "x[/b]"]
        for name in names:
            r.xgroup_create("competitor_prices.historical.*:stream", name, "0", mkstream=True)
        r.xadd(b"\xff:stream", {"a": 1})
        output = run(capsys, "lightbus_retire")
        assert all(name in output for name in names)
        assert "never read" in output

    def test_says_that_there_are_none(self, r, capsys):
        assert run(capsys, "lightbus_retire") == "There are no consumer groups.\n"

    def test_destroys_one(self, groups, capsys):
        output = run(capsys, "lightbus_retire", "shop-gone", "--no-input")
        assert output.endswith("Destroyed group 'shop-gone' of shop.*:stream.\n")
        assert groups() == {"shop-here"}

    def test_but_none_that_is_in_use(self, groups, monkeypatch):
        for options in ([], ["--idle", "0"]):
            with pytest.raises(CommandError, match="is in use"):
                call_command("lightbus_retire", "shop-here", "--no-input", *options)
        assert groups() == {"shop-gone", "shop-here"}
        monkeypatch.setattr(streams, "RETIRE_AFTER", 0)
        call_command("lightbus_retire", "shop-here", "--no-input", "--idle", "0")
        assert groups() == {"shop-gone"}

    def test_asks_first(self, groups, monkeypatch):
        monkeypatch.setattr("builtins.input", lambda question: "n")
        with pytest.raises(CommandError, match="nothing was destroyed"):
            call_command("lightbus_retire", "shop-gone")
        assert "shop-gone" in groups()
        monkeypatch.setattr("builtins.input", lambda question: "y")
        call_command("lightbus_retire", "shop-gone", "--stream", KEY)
        assert groups() == {"shop-here"}

    def test_has_to_have_somebody_to_ask(self, groups, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.StringIO())
        with pytest.raises(CommandError, match="--no-input"):
            call_command("lightbus_retire", "shop-gone")

    def test_says_that_there_is_none(self, r):
        with pytest.raises(CommandError, match="no consumer group 'shop-nothing'"):
            call_command("lightbus_retire", "shop-nothing")


def test_a_listener_that_gets_events_of_another_stream_starts_there_as_new_ones_do(r, listeners, consume):
    @listens_to("shop.order_placed", listener_name="record")
    def record(event, number):
        Effect.objects.create(number=number)

    consumer = consume()
    fire("shop.order_placed", number=1)
    drain(consumer)
    assert ProcessedEvent.objects.count() == 1
    fire("billing.invoice_sent", number=2)
    listeners.remove(record.listener if hasattr(record, "listener") else next(iter(listeners)))

    @listens_to(["shop.order_placed", "billing.invoice_sent"], listener_name="record")
    def record_more(event, number):
        Effect.objects.create(number=number)

    consumer = consume(process_name="after the deployment")
    fire("billing.invoice_sent", number=3)
    drain(consumer)
    assert list(Effect.objects.order_by("id").values_list("number", flat=True)) == [1, 3]
