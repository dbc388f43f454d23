import pytest

from lightbus_django import listens_to
from lightbus_django.bus import heartbeats
from lightbus_django.bus.heartbeats import INDEX, PREFIX, ListenerSign, ProcessSign
from tests.app.models import Effect

GROUP = "price-monitor-record"


@pytest.fixture
def record(listeners):
    """A listener that writes down the numbers of events, and fails where `broken` says so."""

    @listens_to("shop.order_placed", start="beginning")
    def record(event, number: int, broken: str = "", **kwargs):
        if broken:
            raise ValueError(broken)
        Effect.objects.create(number=number)


@pytest.fixture
def beat(r, redis_client):
    """Write the heartbeat of a process; `age` and `first` are how many seconds ago it, and the first one, were."""

    def write(name="worker", *, start="a", age=0.0, first=100.0, service="price-monitor", listeners=None, **values):
        signs = [ListenerSign(group=GROUP, listener="record", stepped=0.1)] if listeners is None else listeners
        sign = ProcessSign(service_name=service, process_name=name, host="h", pid=7, listeners=signs, **values)
        heartbeats.beat(redis_client, start, sign)
        key = f"{service}/{name}"
        _, at, content = r.hget(PREFIX + key, start).split(" ", 2)
        r.hset(PREFIX + key, start, f"{float(at) - first} {float(at) - age} {content}")
        r.zadd(INDEX, {key: float(at) - age})

    return write
