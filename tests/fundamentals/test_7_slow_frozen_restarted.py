"""Processes that are slow, frozen for a while, or restarted while events come in.

An event belongs to one process at a time, for as long as that shows that it lives. One that stands still for
longer than the acknowledgement timeout loses its events to another, and takes no second effect of them when
it goes on.
"""

import contextlib
import signal
import threading

import pytest

from lightbus_django import fire
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.conftest import eventually
from tests.fundamentals.conftest import KEY

GROUP = "price-monitor-fragile"
LISTEN = ("lightbus_listen", "--listener", "fragile")


@pytest.fixture
def stop():
    """End a worker cleanly and return its log."""

    def terminate(process):
        process.terminate()
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        return output

    return terminate


@contextlib.contextmanager
def firing():
    """Fire a hundred events that take a second, then one after the other; yield the list of their numbers."""
    numbers, ended = [], threading.Event()

    def fire_on_and_on():
        while not ended.wait(0 if len(numbers) < 100 else 0.02):
            fire("shop.parcel_delivered", number=len(numbers), sleep=0.01 if len(numbers) < 100 else 0)
            numbers.append(len(numbers))

    thread = threading.Thread(target=fire_on_and_on)
    thread.start()
    try:
        yield numbers
    finally:
        ended.set()
        thread.join()


def listening(process):
    """Return the process once it says that it listens."""
    assert any("listens to" in line for line in process.stdout)
    return process


def test_a_batch_that_takes_longer_than_the_timeout_is_left_to_its_process(manage, effects, pending, stop):
    """Each of its handlers keeps within the timeout, though another process would love to have the rest."""
    eager = {"LIGHTBUS_ACKNOWLEDGEMENT_TIMEOUT": "1.5", "LIGHTBUS_RECLAIM_INTERVAL": "0.1"}
    for number in range(6):
        fire("shop.parcel_delivered", number=number, sleep=0.5)
    slow = manage(*LISTEN, "--process-name", "web-1", **eager)
    eventually(lambda: pending(GROUP) == 6)
    other = listening(manage(*LISTEN, "--process-name", "web-2", **eager))

    eventually(lambda: pending(GROUP) == 0)
    assert effects("fragile") == list(range(6))
    assert "reclaimed" not in stop(other)
    assert "exceeds" not in stop(slow)


@pytest.mark.parametrize("point", ["events read", "handler done"])
def test_a_process_that_was_frozen_for_longer_than_the_timeout(point, manage, effects, pending, r, stop):
    """Before its transaction, so that another one commits first; and in it, so that the other one waits."""
    quick = {"LIGHTBUS_ACKNOWLEDGEMENT_TIMEOUT": "0.5", "LIGHTBUS_RECLAIM_INTERVAL": "0.1"}
    fire("shop.parcel_delivered", number=1)
    frozen = manage(*LISTEN, "--process-name", "web-1", KILL_AT=point, KILL_WITH="SIGSTOP", **quick)
    eventually(lambda: pending(GROUP) == 1)
    other = manage(*LISTEN, "--process-name", "web-2", **quick)
    if point == "events read":
        eventually(lambda: effects("fragile") == [1] and pending(GROUP) == 0)
    else:
        eventually(lambda: [row["consumer"] for row in r.xpending_range(KEY, GROUP, "-", "+", 1)] == ["web-2"])
        assert effects("fragile") == []
    frozen.send_signal(signal.SIGCONT)

    eventually(lambda: effects("fragile") == [1] and pending(GROUP) == 0)
    stop(frozen)
    assert "reclaimed 1 events" in stop(other)
    assert effects("fragile") == [1]
    assert ProcessedEvent.objects.count() == 1
    assert not FailedEvent.objects.exists()


@pytest.mark.parametrize("names", [("web-1", "web-2", "web-3"), 3 * ("{random4}",)], ids=["fixed", "random"])
def test_a_rolling_restart_loses_and_doubles_nothing_and_waits_for_no_timeout(names, manage, effects, pending, stop):
    """The acknowledgement timeout is a minute. The first one has a batch in hand when it is told to stop."""

    def start(name):
        return manage(*LISTEN, "--process-name", name, LIGHTBUS_RECLAIM_INTERVAL="0.5")

    with firing() as numbers:
        eventually(lambda: len(numbers) > 100)
        processes = [listening(start(names[0]))]
        eventually(lambda: len(effects("fragile")) > 30)  # by then it reads more than ten at a time
        processes += [start(name) for name in names[1:]]
        stop(processes[0])
        handed_back = pending(GROUP)
        for place, name in enumerate(names):
            if place:
                stop(listening(processes[place]))
            processes[place] = listening(start(name))
    assert handed_back > 10
    eventually(lambda: len(effects("fragile")) >= len(numbers) and pending(GROUP) == 0, seconds=50)
    assert effects("fragile") == numbers
    assert not FailedEvent.objects.exists()
    for process in processes:
        stop(process)
