"""Whether a service, or one of its processes, is well."""

from datetime import UTC, datetime, timedelta

import pytest

from lightbus_django import fire
from lightbus_django.bus.heartbeats import ListenerSign
from lightbus_django.operating.health_check import check_process, find_reasons
from lightbus_django.operating.pausing import pause
from lightbus_django.operating.status import read_processes, read_status
from tests.conftest import drain

from .conftest import GROUP

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


def reasons(max_age=60, minutes=0, **limits):
    status = read_status(datetime.now(UTC) + timedelta(minutes=minutes))
    return list(find_reasons(status, max_age=max_age, **limits))


class TestAService:
    @pytest.fixture(autouse=True)
    def service(self, record, consume, beat):
        self.consumer = consume()
        beat()

    def test_that_is_idle_is_well(self):
        assert reasons(max_age=0, max_waiting=0, max_dead=0) == []

    def test_whose_events_are_old(self):
        fire("shop.order_placed", number=1)
        assert reasons() == []
        assert reasons(minutes=2) == ["listener record: its oldest event was published 2 min ago"]
        assert reasons(minutes=2, max_age=600) == []

    def test_whose_events_are_many(self):
        for number in range(3):
            fire("shop.order_placed", number=number)
        assert reasons(max_waiting=3) == []
        assert reasons(max_waiting=2) == ["listener record: 3 events are waiting"]

    def test_with_dead_letters(self, lightbus):
        fire("shop.order_placed", number="no number")
        drain(self.consumer)
        assert reasons() == []
        assert reasons(max_dead=0) == ["listener record: 1 dead letters"]

    def test_with_a_paused_listener(self):
        pause("record", "Ada")
        assert reasons() == ["listener record: paused by Ada"]

    def test_with_a_process_that_hangs(self, beat):
        beat("hangs", listeners=[ListenerSign(group=GROUP, stepped=100)])
        assert reasons() == [f"process hangs: {GROUP} hangs: its thread last came by 100 s ago"]

    def test_does_not_miss_a_killed_process_while_others_run(self, beat):
        beat("killed", age=20)
        assert reasons() == []


def test_a_listener_that_nobody_runs(record):
    assert reasons() == ["listener record: no process runs it"]


def test_redis_that_does_not_answer(record, lightbus):
    lightbus(URL="redis://127.0.0.1:1", REDIS_TIMEOUT=1)
    (reason,) = reasons()
    assert "is not available" in reason


class TestAProcess:
    def check(self, name):
        return list(check_process(name, read_processes()))

    def test_that_is_well_whatever_waits(self, record, consume, beat):
        consume()
        fire("shop.order_placed", number=1)
        beat()
        beat("other", listeners=[ListenerSign(group=GROUP, stepped=100)])
        assert self.check("worker") == []

    def test_that_is_not_there(self):
        assert self.check("worker") == ["process worker has no heartbeat"]

    def test_that_is_frozen(self, beat):
        beat(age=20)
        (reason,) = self.check("worker")
        assert reason.startswith("process worker: no heartbeat for 20 s")

    def test_that_came_back_under_its_name(self, beat):
        beat(start="killed", age=20)
        beat(start="back", first=10)
        assert self.check("worker") == []
