"""Lightbus beside processes of ours that are killed: neither loses an event, neither harms the other."""

import signal

import pytest

from lightbus_django import fire
from lightbus_django.models import FailedEvent
from tests.app.models import Effect
from tests.conftest import eventually

from .bus_service.samples import VALUES
from .conftest import PRICES, SHOP

pytestmark = [pytest.mark.real_lightbus, pytest.mark.django_db(transaction=True)]

STREAMS = PRICES["per_api"], SHOP["per_api"]
GROUP = "price-monitor-keep-books"


@pytest.fixture
def listen(manage):
    """Start a worker of ours, with the listener in listeners.py."""

    def start(name, **environment):
        settings = {"DJANGO_SETTINGS_MODULE": "tests.neighbours.settings"}
        return manage("lightbus_listen", "--listener", "keep_books", "--process-name", name, **settings, **environment)

    return start


def fire_prices(numbers):
    for number in numbers:
        fire("prices.changed", **VALUES | {"number": number})


def place_orders(lightbus_service, numbers):
    lightbus_service.execute(
        f"for n in {list(numbers)}: bus.my_company.shop.order_placed.fire(**VALUES | {{'number': n}})"
    )


def group(r, stream, name):
    """What is to be known of a consumer group but times: its consumers, and what is pending."""
    consumers = {(row["name"], row["pending"]) for row in r.xinfo_consumers(stream, name)}
    pending = [(row["message_id"], row["times_delivered"]) for row in r.xpending_range(stream, name, "-", "+", 100)]
    return consumers, pending


def ours():
    return sorted(Effect.objects.values_list("name", "number"))


def theirs(lightbus_service):
    return {(line["name"].rpartition(".")[0], line["values"]["number"]) for line in lightbus_service.handled}


def test_lightbus_starts_while_all_our_processes_are_dead(lightbus_service, listen, r):
    lightbus_service.run()
    fire_prices(range(3))
    place_orders(lightbus_service, range(3))
    assert listen("web", KILL_AT="events read").wait(30) == -signal.SIGKILL
    before = [group(r, stream, GROUP) for stream in STREAMS]
    # With the noop entry that Lightbus began each of its streams with.
    assert [len(pending) for _, pending in before] == [4, 4]

    lightbus_service.kill()
    lightbus_service.run()
    fire_prices([3])
    lightbus_service.wait_until(lambda: ("prices", 3) in theirs(lightbus_service))
    assert [group(r, stream, GROUP) for stream in STREAMS] == before

    listen("web")
    everything = [("my_company.shop", n) for n in range(3)] + [("prices", n) for n in range(4)]
    eventually(lambda: len(ours()) >= 7)
    eventually(lambda: not any(group(r, stream, GROUP)[1] for stream in STREAMS))
    assert ours() == everything
    assert not FailedEvent.objects.exists()
    lightbus_service.wait_until(lambda: theirs(lightbus_service) == set(everything))


def test_both_are_killed_again_and_again_while_both_fire(lightbus_service, listen, r):
    lightbus_service.run()
    processes = {name: listen(name) for name in ("web-1", "web-2")}
    everything = set()
    for turn in range(3):
        numbers = range(20 * turn, 20 * turn + 20)
        fire_prices(numbers)
        place_orders(lightbus_service, numbers)
        everything |= {(api, number) for api in ("my_company.shop", "prices") for number in numbers}
        fire_prices(number + 1000 for number in numbers)
        everything |= {("prices", number + 1000) for number in numbers}
        for name in processes:
            processes[name].kill()
            processes[name] = listen(name)
        if turn == 1:
            lightbus_service.kill()
            lightbus_service.run()
    eventually(lambda: len(ours()) >= len(everything))
    eventually(lambda: not any(group(r, stream, GROUP)[1] for stream in STREAMS))
    assert ours() == sorted(everything)
    assert not FailedEvent.objects.exists()
    lightbus_service.wait_until(lambda: theirs(lightbus_service) == everything)
    assert all(process.poll() is None for process in processes.values())
