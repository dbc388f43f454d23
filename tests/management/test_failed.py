"""`lightbus_failed`: list, show, retry, discard and export failed events."""

import io
import json
import threading
from contextlib import closing
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.utils import timezone

from lightbus_django import fire, listens_to
from lightbus_django.management import selection
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.conftest import drain
from tests.listening.streams import effects
from tests.operating.conftest import GROUP
from tests.operating.conftest import record as record

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


@pytest.fixture
def failed(capsys):
    def run(*arguments):
        call_command("lightbus_failed", *arguments)
        out = capsys.readouterr()
        run.err = out.err
        return out.out

    return run


@pytest.fixture
def ids(record, consume):
    """The ids of two events that failed in the same way, and of one that does not fit its handler."""
    consumer = consume()
    payloads = {"number": 1, "broken": "one"}, {"number": 2, "broken": "two"}, {"number": "no number"}
    found = [fire("shop.order_placed", **payload).id for payload in payloads]
    drain(consumer)
    return found


def due():
    return set(FailedEvent.objects.filter(attempts=0).values_list("event_id", flat=True))


class TestList:
    def test_by_cause(self, ids, failed):
        output = failed("list")
        assert output.splitlines()[0].split()[0] == "group"  # no blank line comes first
        (row,) = [line.split() for line in output.splitlines() if " ValueError " in line]
        assert row[:2] == [GROUP, "ValueError"]
        assert "operating/conftest.py" in row[2]
        assert row[3:5] == ["2", "0"]
        assert "UnreadableEvent" in output

    def test_each(self, ids, failed):
        output = failed("list", "--each")
        assert all(event_id in output for event_id in ids)
        assert "ValueError: one" in output
        assert failed("list", "--each", "--limit", "1").count(GROUP) == 1

    def test_filters(self, ids, failed):
        listens_to("shop.order_placed", listener_name="other")(lambda event: None)
        for options, count in (
            ((), 3),
            (("--dead",), 1),
            (("--exception", "ValueError"), 2),
            (("--listener", "record"), 3),
            (("--listener", "other"), 0),
            (("--listener", "price-monitor-other"), 0),
            (("--event", "shop.order_placed"), 3),
            (("--event", "shop.other"), 0),
            (("--since", "1h"), 3),
            (("--since", "2099-01-01T00:00"), 0),
            (("--until", "2099-01-01T00:00"), 3),
            (("--until", "1h"), 0),
        ):
            assert len(json.loads(failed("list", "--each", "--json", *options))) == count, options

    def test_json(self, ids, failed):
        first, second = json.loads(failed("list", "--json"))
        assert (first["exception"], first["count"], second["count"]) == ("ValueError", 2, 1)

    def test_nothing(self, failed):
        assert failed("list") == failed("list", "--each") == "No failed events.\n"

    def test_rows_of_earlier_versions(self, ids, failed):
        FailedEvent.objects.update(exception="", place="", first_failed_at=None, history=None)
        assert "(recorded by an earlier version)" in failed("list")


class TestShow:
    def test_payload_traceback_history_and_preview(self, ids, failed):
        output = failed("show", ids[2])
        assert '"number": "no number"' in output
        assert "A retry can't succeed: " in output
        output = failed("show", ids[0][:-1])
        assert "Traceback" in output
        assert '"history"' in output
        assert "A retry can't succeed" not in output

    def test_one_that_is_not_there(self, failed):
        with pytest.raises(CommandError, match="There is no failed event '0197' in database 'default'"):
            failed("show", "0197")


class TestRetry:
    def test_by_id(self, ids, failed):
        assert failed("retry", ids[0], "--no-input") == "1 events are due now; lightbus_listen retries them.\n"
        assert due() == {ids[0]}

    def test_what_is_being_retried_is_left_out_and_that_is_said(self, ids, failed):
        in_hand = FailedEvent.objects.filter(event_id=ids[0])
        in_hand.update(claimed_until=timezone.now() + timedelta(minutes=1))
        assert failed("retry", "--all", "--no-input").startswith("2 events are due now; ")
        assert "Left out, because they are being retried at this moment: 1." in failed.err
        in_hand.update(claimed_until=None)
        failed("retry", "--all", "--no-input")
        assert failed.err == ""

    def test_by_filter(self, ids, failed):
        assert json.loads(failed("retry", "--exception", "ValueError", "--no-input", "--json")) == {
            "retried": 2,
            "refused_groups": [],
        }
        assert due() == set(ids[:2])

    def test_all_or_some_in_chunks(self, ids, failed, monkeypatch):
        monkeypatch.setattr(selection, "CHUNK", 1)
        failed("retry", "--limit", "2", "--no-input")
        assert due() == set(ids[:2])
        failed("retry", "--all", "--no-input")
        assert due() == set(ids)

    def test_not_without_saying_which(self, ids, failed):
        with pytest.raises(CommandError, match="or --all"):
            failed("retry", "--no-input")
        with pytest.raises(CommandError, match="There is no failed event"):
            failed("retry", "0197-nothing", "--no-input")

    def test_not_what_no_listener_takes(self, ids, failed):
        FailedEvent.objects.filter(event_id=ids[0]).update(consumer_group="gone")
        assert failed("retry", "--all", "--no-input").startswith("2 events are due now")
        assert failed.err == "Not retried: this service has no listener for the consumer group gone.\n"
        assert due() == set(ids[1:])

    def test_asks_first(self, ids, failed, monkeypatch):
        monkeypatch.setattr("builtins.input", lambda question: "n")
        with pytest.raises(CommandError, match="nothing was changed"):
            failed("retry", "--all")
        monkeypatch.setattr("sys.stdin", io.StringIO())
        monkeypatch.undo()
        monkeypatch.setattr("sys.stdin", io.StringIO())
        with pytest.raises(CommandError, match="--no-input"):
            failed("retry", "--all")
        assert due() == set()

    def test_and_then_they_are_retried(self, ids, failed, consume):
        FailedEvent.objects.filter(event_id=ids[0]).update(
            fields=FailedEvent.objects.get(event_id=ids[0]).fields.replace("broken", "mended")
        )
        failed("retry", ids[0], "--no-input")
        consumer = consume()
        consumer.retries_due.set()
        drain(consumer)
        assert effects() == [1]


def test_discard_says_who_and_why(ids, failed, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    assert failed("discard", ids[0], "--reason", "a test", "--no-input") == "1 events discarded.\n"
    row = ProcessedEvent.objects.get(event_id=ids[0])
    assert (row.discarded, row.discarded_by, row.discard_reason) == (True, "ada (lightbus_failed)", "a test")
    assert json.loads(failed("discard", "--all", "--reason", "old", "--no-input", "--json")) == {"discarded": 2}
    assert not FailedEvent.objects.exists()


class TestExport:
    def test_json_and_fixture(self, ids, failed):
        assert json.loads(failed("export", ids[0]))["payload"] == {"number": 1, "broken": "one"}
        assert "def order_placed_payload():" in failed("export", ids[0], "--format", "pytest")

    def test_one_only(self, ids, failed):
        with pytest.raises(CommandError, match=r"There are several, use the whole id and --listener: .* of " + GROUP):
            failed("export", ids[0][:6])


class TestWait:
    @pytest.fixture
    def worker(self, ids, consume):
        """Retry in the background what is due, until the test ends."""
        consumer, is_over = consume(), threading.Event()

        def work():
            with closing(connections["default"]):
                while not is_over.wait(0.05):
                    consumer.retries_due.set()
                    drain(consumer)

        thread = threading.Thread(target=work)
        thread.start()
        yield
        is_over.set()
        thread.join(30)

    def mend(self, *ids):
        for event in FailedEvent.objects.filter(event_id__in=ids):
            FailedEvent.objects.filter(pk=event.pk).update(fields=event.fields.replace("broken", "mended"))

    def test_all_are_done(self, ids, failed, worker):
        self.mend(*ids[:2])
        assert failed("retry", *ids[:2], "--no-input", "--wait", "30").splitlines() == [
            "2 events are due now; lightbus_listen retries them.",
            "2 retried: 2 done, 0 failed again",
        ]

    def test_some_fail_again(self, ids, failed, worker, capsys):
        self.mend(ids[0])
        with pytest.raises(CommandError, match="2 retried: 1 done, 1 failed again"):
            failed("retry", *ids[:2], "--no-input", "--wait", "30")
        capsys.readouterr()
        with pytest.raises(SystemExit, match="1"):
            failed("retry", ids[1], "--no-input", "--wait", "30", "--json")
        assert json.loads(capsys.readouterr().out) == {
            "retried": 1,
            "refused_groups": [],
            "done": 0,
            "failed_again": 1,
            "to_come": 0,
            "withdrawn": 0,
        }

    def test_nobody_retries_them(self, ids, failed):
        with pytest.raises(CommandError, match="2 retried: 0 done, 0 failed again, 2 still to come"):
            failed("retry", *ids[:2], "--no-input", "--wait", "0.1")

    def test_nothing_to_wait_for(self, ids, failed):
        assert "0 retried: 0 done" in failed("retry", "--exception", "NoSuchError", "--no-input", "--wait")
