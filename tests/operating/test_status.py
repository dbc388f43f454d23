"""The state of a service: processes, listeners, outboxes and streams, and what needs attention."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from django.db import OperationalError
from django.utils import timezone

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.bus import figures
from lightbus_django.bus.heartbeats import ListenerSign
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent
from lightbus_django.operating import status as status_module
from lightbus_django.operating.catalogue import read_catalogue
from lightbus_django.operating.pausing import pause
from lightbus_django.operating.status import read_processes, read_status
from lightbus_django.running.health import Health
from lightbus_django.running.heartbeat import Pulse
from tests.conftest import drain
from tests.listening.streams import KEY, fetch

from .conftest import GROUP

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


def listener(status=None):
    (found,) = (status or read_status()).listeners
    return found


def later(**ago):
    return read_status(datetime.now(UTC) + timedelta(**ago))


def test_a_service_without_listeners(r, beat):
    beat(listeners=[])
    status = read_status()
    assert (status.service_name, status.listeners, status.streams) == ("price-monitor", [], [])
    assert [process.name for process in status.processes] == ["worker"]
    assert [outbox.database for outbox in status.outboxes] == ["default", "other"]
    assert status.all_problems() == []


def test_a_service_without_listeners_needs_a_process_too(r, beat):
    problem = "no process has a heartbeat: start lightbus_listen, which relays and deletes old rows"
    assert read_status().problems == [problem]
    beat(listeners=[], age=20)
    assert read_status().problems == [problem]


def test_without_redis_nothing_is_said_of_processes_and_backlogs(record, lightbus):
    lightbus(URL="redis://127.0.0.1:1", REDIS_TIMEOUT=1)
    status = read_status()
    (problem,) = status.problems
    assert "is not available" in problem
    found = listener(status)
    assert (found.waiting, found.streams, found.unknown_streams) == (None, [KEY], [KEY])
    assert found.problems == []


def test_a_key_that_is_not_a_stream_is_named_and_hides_nothing(r, record, consume, beat):
    listens_to("bad.happened", listener_name="bad")(lambda event: None)
    consume(next(each for each in registry if each.listener_name == "record"))
    fire("shop.order_placed", number=1)
    beat()
    r.set("bad.*:stream", "in the way")
    status = read_status()
    assert status.is_redis_known
    (problem,) = status.problems
    assert problem.endswith("the key 'bad.*:stream' holds something other than a stream; rename or delete it")
    assert [stream.key for stream in status.streams] == [KEY]
    assert [(each.name, each.waiting) for each in status.listeners] == [("bad", None), ("record", 1)]
    assert [process.problems for process in status.processes] == [[]]
    assert [each.name for each in read_catalogue()] == ["bad.happened", "shop.order_placed"]


class TestListeners:
    def test_one_that_has_never_run(self, record):
        found = listener()
        assert (found.name, found.group, found.waiting, found.database) == ("record", GROUP, None, "default")
        assert found.problems == ["no process runs it"]
        assert not found.is_running

    def test_one_that_is_done(self, record, consume, beat):
        consumer = consume()
        fire("shop.order_placed", number=1)
        drain(consumer)
        beat()
        found = listener()
        assert (found.waiting, found.in_hand, found.oldest, found.seconds_behind) == (0, 0, None, 0)
        assert (found.processes, found.problems, found.is_exact) == (["worker"], [], True)

    def test_only_wanted_events_wait_and_the_oldest_has_an_age(self, record, consume, beat):
        consume()
        beat()
        fire("shop.parcel_delivered", number=1)
        for number in range(3):
            fire("shop.order_placed", number=number)
        fire("shop.parcel_delivered", number=1)
        found = listener(later(seconds=50))
        assert found.waiting == 3
        assert 50 <= found.seconds_behind < 60
        assert found.problems == []
        (problem,) = listener(later(minutes=3)).problems
        assert problem == "late: its oldest event was published 3 min ago; it handles 0 a minute"

    def test_events_in_hand(self, r, record, consume):
        consume()
        fire("shop.order_placed", number=1)
        fetch(r, "other", group=GROUP)
        assert (listener().waiting, listener().in_hand) == (0, 1)

    def test_events_of_several_streams_are_added_up(self, consume):
        @listens_to(["shop.order_placed", "stock.article_ran_out"])
        def record(event): ...

        consume()
        fire("shop.order_placed")
        fire("stock.article_ran_out")
        found = listener()
        assert (found.waiting, found.streams) == (2, ["shop.*:stream", "stock.*:stream"])

    def test_retries_and_dead_letters(self, record, consume, beat, lightbus):
        consumer = consume()
        beat()
        for number in range(3):
            fire("shop.order_placed", number=number, broken="x")
        drain(consumer)
        FailedEvent.objects.filter(pk=FailedEvent.objects.latest("pk").pk).update(next_attempt_at=None)
        found = listener()
        assert (found.retrying, found.dead_letters) == (2, 1)
        assert found.problems == ["1 dead letters: retry or discard them with lightbus_failed, or in the admin"]

    def test_one_that_is_paused(self, record, consume, beat):
        consume()
        beat()
        pause("record", "Ada")
        fire("shop.order_placed", number=1)
        found = listener(later(minutes=5))
        assert (found.paused_by, found.paused_at is not None) == ("Ada", True)
        assert found.problems == ["paused by Ada for 5 min; lightbus_resume ends that"]

    def test_its_figures(self, record, consume, beat, redis_client):
        consumer = consume()
        for number in range(5):
            fire("shop.order_placed", number=number)
        drain(consumer)
        names = {"service_name": "price-monitor", "process_name": "worker"}
        healths = {consumer: Health("record", redis_client)}
        pulse = Pulse(healths, list, set, **names, settings=consumer.settings, client=redis_client)
        pulse.beat()
        found = listener()
        assert sum(found.minutes) == 5
        assert 0 < found.p50 <= found.p95 < 10
        assert (len(found.minutes_failed), sum(found.minutes_failed)) == (60, 0)
        assert sorted({*found.minutes_p95} - {None}) == [found.p95]
        status = later(minutes=2)
        assert status.listeners[0].per_minute == 1
        assert status.minutes_p50 == status.listeners[0].minutes_p50
        (process,) = status.processes
        assert (process.name, process.per_minute, sum(process.minutes)) == ("worker", 1, 5)

    def test_failed_attempts_and_latencies_of_all_listeners_together(self, record, redis_client):
        @listens_to("shop.order_placed", listener_name="slow")
        def slow(event): ...

        at = datetime.now(UTC)
        for group, seconds in ((GROUP, 0.1), ("price-monitor-slow", 100)):
            counts = Counter({figures.HANDLED: 10, figures.FAILED: 2, figures.bucket(seconds * 1000): 10})
            figures.add(redis_client, {group: counts}, at)
        status = read_status(at)
        assert [each.minutes_failed[-1] for each in status.listeners] == [2, 2]
        assert status.minutes_p50[-1] == pytest.approx(0.1, rel=0.1)
        assert status.minutes_p95[-1] == pytest.approx(100, rel=0.1)
        assert status.minutes_p50[:-1] == [None] * 59


class TestProcesses:
    def problems(self):
        return [problem for process in read_status().processes for problem in process.problems]

    def test_one_that_has_handled_nothing_has_figures_of_zero(self, record, beat):
        beat()
        (process,) = read_status().processes
        assert (process.per_minute, process.minutes) == (0, [0] * 60)

    def test_an_idle_one_is_healthy(self, record, beat):
        beat(started=90, version="1.2", code_version="abc", timeout=1.0)
        (process,) = read_status().processes
        assert (process.name, process.host, process.pid, process.code_version) == ("worker", "h", 7, "abc")
        assert process.listeners == [GROUP]
        assert 90 <= process.seconds_running < 100
        assert process.is_healthy

    def test_of_another_service_is_not_ours(self, beat):
        beat(service="other")
        assert read_status().processes == []

    def test_a_handler_that_takes_long_is_shown_and_one_that_hangs_is_a_problem(self, record, beat):
        sign = ListenerSign(group=GROUP, doing="running the handler", doing_for=50, event_id="e-1", stepped=50)
        beat(listeners=[sign])
        (process,) = read_status().processes
        assert process.in_hand == [f"{GROUP}: running the handler of e-1 for 50 s"]
        assert process.events_in_hand == ["e-1"]
        assert process.problems == []
        sign.doing_for = 61
        beat(listeners=[sign])
        assert self.problems() == [f"{GROUP} hangs: running the handler of e-1 for 61 s"]

    def test_a_thread_that_does_not_come_by(self, record, beat):
        beat(listeners=[ListenerSign(group=GROUP, stepped=61)])
        assert self.problems() == [f"{GROUP} hangs: its thread last came by 61 s ago"]

    def test_one_that_cannot_reach_its_database(self, record, beat):
        beat(listeners=[ListenerSign(group=GROUP, stepped=1, problem="database 'default': refused")])
        assert self.problems() == [f"{GROUP} is interrupted: database 'default': refused"]

    def test_jobs_that_hang(self, beat):
        beat(stuck_jobs=["relay of 'default': database 'default' has not answered for 20 s"])
        assert self.problems() == ["relay of 'default': database 'default' has not answered for 20 s"]

    def test_one_that_is_frozen(self, record, beat):
        beat(age=20)
        assert self.problems() == ["no heartbeat for 20 s: it was killed, is frozen, or can't reach Redis"]
        assert listener().processes == []

    def test_one_that_was_killed_and_came_back_is_healthy(self, record, beat):
        beat(start="killed", age=18)
        beat(start="back", first=5)
        assert self.problems() == []
        assert listener().processes == ["worker"]

    def test_two_under_one_name(self, record, beat):
        beat(start="one", first=100)
        beat(start="two", first=50)
        text = "another process runs under the same name, on h with pid 7; they handle events twice"
        assert self.problems() == [text, text]
        assert len(read_processes()) == 2

    def test_of_an_earlier_version_are_named_and_no_problem(self, record, consume, beat):
        consume(process_name="old")
        consume(process_name="worker")
        beat()
        status = read_status()
        assert status.silent_consumers == ["old"]
        assert status.all_problems() == []

    def test_a_listener_that_only_an_old_one_runs_is_run(self, record, consume):
        consume(process_name="old")
        assert listener().is_running
        assert listener().problems == []


class TestGroupsWithoutAListener:
    def test_are_named(self, record, listeners, consume, beat):
        consume()
        beat()
        for each in list(listeners):
            listeners.remove(each)
        (problem,) = read_status().problems
        assert problem.startswith(f"no listener of this service has the consumer group {GROUP}")
        assert problem.endswith(f"lightbus_retire {GROUP}")

    def test_many_are_one_problem(self, beat, listeners):
        beat()
        for group in ("price-monitor-b", "price-monitor-a"):
            ConsumerGroup.objects.create(key=group, service_name="price-monitor", consumer_group=group)
        (problem,) = read_status().problems
        assert "has the consumer groups price-monitor-a, price-monitor-b, so their events wait: if" in problem
        assert problem.endswith("run manage.py lightbus_retire GROUP")

    def test_those_of_other_services_are_theirs(self, record, consume):
        consume()
        ConsumerGroup.objects.update(service_name="other", consumer_group="other-record")
        assert read_status().problems == []


class TestOutboxes:
    def test_what_is_published_is_no_backlog(self, housekeeping):
        on_commit("shop.order_placed", number=1)
        housekeeping().relay()
        outbox, _ = read_status().outboxes
        assert (outbox.database, outbox.unpublished, outbox.refused, outbox.seconds_behind) == ("default", 0, 0, 0)

    def test_what_waits_for_long(self, beat):
        beat(listeners=[])
        ago = timezone.now() - timedelta(minutes=10)
        OutboxEvent.objects.create(event_name="shop.order_placed", payload="{}", created_at=ago, due_at=ago)
        status = read_status()
        assert 600 <= status.outboxes[0].seconds_behind < 610
        (problem,) = status.problems
        assert problem.startswith("1 events in the outbox of 'default' are not published, the oldest for 10 min")

    def test_what_redis_refuses(self, beat):
        beat(listeners=[])
        OutboxEvent.objects.create(event_name="a.b", payload="{}", due_at=timezone.now(), error="too large")
        status = read_status()
        assert status.outboxes[0].refused == 1
        assert status.problems == ["1 events in the outbox of 'default' can't be published; see their errors"]


class TestStreams:
    def test_what_holds_a_stream(self, r, record, consume):
        consumer = consume()
        r.xgroup_create(KEY, "other-slow", "0")
        for number in range(3):
            fire("shop.order_placed", number=number)
        fetch(r, "one", count=2, group="other-slow")
        drain(consumer)
        (stream,) = read_status().streams
        assert (stream.key, stream.length, stream.held_by) == (KEY, 3, "other-slow")
        assert stream.memory > 0
        r.xgroup_destroy(KEY, "other-slow")
        assert read_status().streams[0].held_by == ""

    def test_those_that_the_service_only_fires_to(self, housekeeping):
        on_commit("shop.order_placed", number=1)
        OutboxEvent.objects.create(event_name="no name", payload="{}")
        assert [stream.key for stream in read_status().streams] == [KEY]


class TestServersThatDoNotAnswer:
    def test_redis(self, record, lightbus):
        lightbus(URL="redis://127.0.0.1:1", REDIS_TIMEOUT=1)
        status = read_status()
        assert len(status.problems) == 1
        assert "Redis at redis://127.0.0.1:1/0 is not available" in status.problems[0]
        assert (status.is_redis_known, status.unknown_databases) == (False, [])
        assert listener(status).waiting is None
        assert listener(status).problems == []
        assert [outbox.database for outbox in status.outboxes] == ["default", "other"]

    def test_a_database(self, record, consume, beat, monkeypatch):
        consume()
        beat()

        def away(alias):
            raise OperationalError("server closed the connection")

        monkeypatch.setattr(status_module, "has_outbox", away)
        status = read_status()
        assert any("server closed the connection" in problem for problem in status.problems)
        assert (status.is_redis_known, status.unknown_databases) == (True, ["default", "other"])
        assert listener(status).processes == ["worker"]
