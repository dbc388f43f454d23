"""`lightbus_status`: tables, JSON, and the check for probes."""

import io
import json

import pytest
from django.core.management import CommandError, call_command

from lightbus_django import fire, on_commit
from lightbus_django.bus.heartbeats import ListenerSign
from lightbus_django.management.commands import lightbus_status
from tests.conftest import drain
from tests.operating.conftest import GROUP
from tests.operating.conftest import beat as beat
from tests.operating.conftest import record as record

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


@pytest.fixture
def status(capsys):
    def run(*arguments):
        call_command("lightbus_status", *arguments)
        return capsys.readouterr().out

    return run


@pytest.fixture
def service(record, consume, beat):
    """A service that is well, with one event handled and two that wait."""
    consumer = consume()
    fire("shop.order_placed", number=1)
    drain(consumer)
    on_commit("shop.order_placed", number=2)
    fire("shop.order_placed", number=3)
    sign = ListenerSign(group=GROUP, doing="running the handler", doing_for=3, event_id="e-1", stepped=3)
    beat(listeners=[sign])


def row(output, first):
    (found,) = [line.split() for line in output.splitlines() if line.split()[:1] == [first]]
    return found


class TestTables:
    def test_show_what_there_is(self, service, status):
        output = status()
        assert output.startswith("Service price-monitor on redis://")
        assert row(output, "worker")[1:3] == ["h", "7"]
        assert f"{GROUP}: running the handler of e-1 for 3 s" in output
        assert row(output, "record")[:2] == ["record", "2"]
        assert row(output, "default")[:3] == ["default", "1", "0"]
        assert row(output, "shop.*:stream")[1] == "3"
        assert row(output, "shop.*:stream")[-1] == GROUP
        assert output.endswith("All is well.\n")

    def test_of_a_service_without_anything(self, status):
        output = status()
        assert "No process has a heartbeat." in output
        assert "This service has no listeners." in output
        assert "All is well." not in output
        with pytest.raises(CommandError, match="no process has a heartbeat"):
            status("--check")

    def test_of_a_listener_whose_streams_are_unknown(self, record, lightbus, status):
        lightbus(URL="redis://127.0.0.1:1", REDIS_TIMEOUT=1)
        assert row(status(), "record")[:3] == ["record", "unknown", "unknown"]
        assert json.loads(status("--json"))["listeners"][0]["unknown_streams"] == ["shop.*:stream"]

    def test_say_what_needs_attention_and_name_old_processes(self, record, consume, beat, status):
        consume(process_name="old")
        beat(age=20)
        output = status()
        assert "Without a heartbeat (of an earlier version, or just ended): old" in output
        assert "Needs attention:\n- process worker: no heartbeat for 20 s" in output

    def test_of_a_listener_without_a_group_and_with_an_estimate(self, record, consume, beat, status, monkeypatch):
        assert "no group yet" in status()
        consume()
        monkeypatch.setattr("lightbus_django.bus.backlog.LOOK_AT", 1)
        for number in range(1200):
            fire("shop.order_placed", number=number)
        assert "about 1,200" in status()

    def test_are_shown_again_until_ctrl_c(self, service, status, monkeypatch):
        looks = []

        def interrupt(seconds):
            looks.append(seconds)
            if len(looks) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(lightbus_status.time, "sleep", interrupt)
        assert "Service price-monitor" in status("--watch")
        assert looks == [2.0] * 3


def test_json(service, status):
    found = json.loads(status("--json"))
    assert found["service_name"] == "price-monitor"
    assert [(process["name"], len(process["minutes"])) for process in found["processes"]] == [("worker", 60)]
    (listener,) = found["listeners"]
    assert (listener["name"], listener["waiting"], listener["problems"]) == ("record", 2, [])
    assert [outbox["unpublished"] for outbox in found["outboxes"]] == [1, 0]
    assert found["streams"][0]["length"] == 3
    assert found["problems"] == []


class TestCheck:
    def test_passes_if_all_is_well(self, service, status):
        assert status("--check") == "ok\n"
        assert json.loads(status("--check", "--json")) == {"ok": True, "reasons": [], "paused": []}

    @pytest.mark.parametrize("options", [["--max-waiting", "1"], ["--max-age", "0"]])
    def test_fails_and_says_why(self, service, status, options):
        with pytest.raises(CommandError, match="listener record: "):
            status("--check", *options)

    def test_prints_json_also_when_it_fails(self, service, capsys):
        with pytest.raises(CommandError):
            call_command("lightbus_status", "--check", "--json", "--max-waiting=1")
        assert json.loads(capsys.readouterr().out) == {
            "ok": False,
            "reasons": ["listener record: 2 events are waiting"],
            "paused": [],
        }

    def test_of_a_process_looks_at_nothing_else(self, service, status, django_assert_num_queries):
        with django_assert_num_queries(0):
            assert status("--check", "--process", "worker", "--max-waiting=0") == "ok\n"
        with pytest.raises(CommandError, match="process gone has no heartbeat"):
            status("--check", "--process", "worker", "--process", "gone")

    def test_of_a_process_named_by_its_host(self, record, beat, status, monkeypatch):
        monkeypatch.setattr("socket.gethostname", lambda: "Web1")
        beat("web1-2")
        assert status("--check", "--process", "{hostname}-2") == "ok\n"

    def test_of_a_process_fails_if_redis_does_not_answer(self, lightbus):
        lightbus(URL="redis://127.0.0.1:1", REDIS_TIMEOUT=1)
        with pytest.raises(CommandError, match="is not available"):
            call_command("lightbus_status", "--check", "--process", "worker")


def test_exit_codes(manage, service):
    assert manage("lightbus_status", "--check", "--process", "gone").wait(30) == 1
    well = manage("lightbus_status", "--check", "--process", "worker")
    assert (well.communicate(timeout=30)[0], well.returncode) == ("ok\n", 0)


def test_wide_tables_are_not_cut_where_there_is_no_terminal(service):
    output = io.StringIO()
    call_command("lightbus_status", stdout=output)
    assert max(map(len, output.getvalue().splitlines())) <= 200
    assert "…" not in output.getvalue()
