"""`kill -9` comes at any moment, and whatever the moment: no event is lost, none has its effects twice.

The processes here kill themselves at a point that the test names; tests/app/kill_points.py has the points.
Those of the first half are killed while they handle events, those of the second half while they fire them.
"""

import signal
from collections import Counter

import pytest
from django.utils import timezone

from lightbus_django import fire
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from tests.conftest import eventually
from tests.fundamentals.conftest import KEY

GROUP = "price-monitor-fragile"
LISTEN = ("lightbus_listen", "--listener", "fragile")
SHORT_TIMEOUTS = {"LIGHTBUS_ACKNOWLEDGEMENT_TIMEOUT": "0.5", "LIGHTBUS_RECLAIM_INTERVAL": "0.1"}


@pytest.fixture
def killed(manage):
    """Run `manage.py …` until it kills itself at a point."""

    def run(*arguments, at, **environment):
        process = manage(*arguments, KILL_AT=at, **environment)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL, output

    return run


@pytest.fixture
def burst(manage):
    """Run a worker until nothing is left that it may do now. The acknowledgement timeout is a minute."""

    def run(*arguments, **environment):
        process = manage(*LISTEN, "--process-name", "web", "--burst", *arguments, **environment)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output

    return run


@pytest.fixture
def all_is_well(effects, pending):
    """Whether the events 0 to `count` - 1 have had their effects once, and nothing is left of them."""

    def check(count):
        assert effects("fragile") == list(range(count))
        assert ProcessedEvent.objects.filter(consumer_group=GROUP).count() == count
        assert not FailedEvent.objects.exists()
        return pending(GROUP) == 0

    return check


def fire_parcels(count, **payload):
    for number in range(count):
        fire("shop.parcel_delivered", number=number, **payload)


def deliveries(r):
    """How often each event that is pending was delivered."""
    return [row["times_delivered"] for row in r.xpending_range(KEY, GROUP, "-", "+", 100)]


# --- While it handles events --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "committed"),
    [
        ("events read", []),
        ("handler begins", []),
        ("handler done", []),
        ("transaction committed", [0, 1, 2]),
        ("commits durable", [0, 1, 2]),
    ],
)
def test_back_under_its_name_it_handles_what_it_left_at_once(point, committed, killed, burst, effects, all_is_well, r):
    fire_parcels(3)
    killed(*LISTEN, "--process-name", "web", at=point)
    assert effects("fragile") == committed
    assert deliveries(r) == [1, 1, 1]

    burst()
    assert all_is_well(3)


@pytest.mark.parametrize(("point", "committed"), [("handler done", []), ("transaction committed", [0, 1, 2])])
def test_else_another_process_handles_it_after_the_timeout(point, committed, killed, manage, effects, all_is_well):
    fire_parcels(3)
    killed(*LISTEN, "--process-name", "web-1", at=point)
    assert effects("fragile") == committed

    manage(*LISTEN, "--process-name", "web-2", **SHORT_TIMEOUTS)
    eventually(lambda: effects("fragile") == [0, 1, 2])
    eventually(lambda: all_is_well(3))


def test_in_the_middle_of_a_batch_of_which_a_part_is_committed(killed, burst, effects, all_is_well):
    """The first event is slow, so that it has a transaction of its own."""
    fire("shop.parcel_delivered", number=0, sleep=0.2)
    for number in range(1, 5):
        fire("shop.parcel_delivered", number=number)
    killed(*LISTEN, "--process-name", "web", at="transaction committed")
    assert effects("fragile") == [0]

    burst()
    assert all_is_well(5)


def test_what_was_delivered_before_is_handled_one_at_a_time(killed, manage, burst, effects, all_is_well, r, tmp_path):
    """So what the third event does to its process is not undone with, or blamed on, the others."""
    for number in range(5):
        fire("shop.parcel_delivered", number=number, dies=number == 2, once=str(tmp_path / str(number)))
    killed(*LISTEN, "--process-name", "web", at="events read")
    assert manage(*LISTEN, "--process-name", "web").wait(30) == -signal.SIGKILL
    assert effects("fragile") == [0, 1]
    assert deliveries(r)[-3:] == [2, 1, 1]  # those before may not be acknowledged yet

    burst()
    assert all_is_well(5)


def test_while_it_takes_over_what_another_left(killed, manage, effects, all_is_well):
    fire_parcels(3)
    killed(*LISTEN, "--process-name", "web-1", at="events read")
    killed(*LISTEN, "--process-name", "web-2", at="events reclaimed", **SHORT_TIMEOUTS)
    killed(*LISTEN, "--process-name", "web-3", at="delivery counted", **SHORT_TIMEOUTS)
    assert effects("fragile") == []

    manage(*LISTEN, "--process-name", "web-4", **SHORT_TIMEOUTS)
    eventually(lambda: effects("fragile") == [0, 1, 2])
    eventually(lambda: all_is_well(3))


def test_while_it_stops(manage, burst, effects, all_is_well, tmp_path):
    started = tmp_path / "started"
    fire_parcels(3, sleep=1, once=str(started))
    process = manage(*LISTEN, "--process-name", "web", KILL_AT="releasing")
    eventually(started.exists)
    process.terminate()
    assert process.wait(30) == -signal.SIGKILL
    assert effects("fragile") == [0]

    burst()
    assert all_is_well(3)


# --- A failed event -------------------------------------------------------------------------------


def retry_at_once():
    """Spare us the backoff, and the time for which a retry is the process's that claimed it."""
    FailedEvent.objects.update(next_attempt_at=timezone.now(), claimed_until=None)


def test_when_a_failure_is_committed_and_not_acknowledged(killed, burst, effects, all_is_well, tmp_path):
    fire_parcels(1, fails=True, once=str(tmp_path / "failed"))
    killed(*LISTEN, "--process-name", "web", at="transaction committed")
    assert effects("fragile") == []
    assert FailedEvent.objects.get().attempts == 1

    burst()  # delivered again, it does not count as another attempt
    assert FailedEvent.objects.get().attempts == 1
    assert effects("fragile") == []
    retry_at_once()
    burst()
    assert all_is_well(1)


@pytest.mark.parametrize("point", ["handler begins", "handler done", "retry committed"])
def test_while_it_retries(point, killed, burst, effects, all_is_well, tmp_path):
    fire_parcels(1, fails=True, once=str(tmp_path / "failed"))
    burst()
    retry_at_once()
    killed(*LISTEN, "--process-name", "web", "--burst", at=point)
    if point == "retry committed":
        assert effects("fragile") == [0]
    else:
        assert effects("fragile") == []
        assert FailedEvent.objects.get().attempts == 2  # counted before it was made
        retry_at_once()
    burst()
    assert all_is_well(1)


def test_a_retry_that_kills_its_process_each_time_uses_up_its_attempts(killed, burst, effects, tmp_path):
    fire_parcels(1, fails=True, once=str(tmp_path / "failed"))
    burst()
    for attempts in (2, 3):
        retry_at_once()
        killed(*LISTEN, "--process-name", "web", "--burst", at="handler done", LIGHTBUS_MAX_ATTEMPTS="3")
        assert FailedEvent.objects.get().attempts == attempts
    retry_at_once()
    burst(LIGHTBUS_MAX_ATTEMPTS="3")
    failed = FailedEvent.objects.get()
    assert failed.is_dead_letter
    assert "its process died in the last of 3 attempts" in failed.error
    assert effects("fragile") == []


# --- While it fires events ------------------------------------------------------------------------

PLACE_THREE_ORDERS = """
from django.db import transaction
from lightbus_django import on_commit
with transaction.atomic():
    for number in range(3):
        on_commit("shop.parcel_delivered", number=number)
"""


def relay_at_once():
    """Spare us the grace that a relay gives the process that committed."""
    OutboxEvent.objects.exclude(due_at=None).update(due_at="2000-01-01T00:00Z", claimed_until=None)


def published(r):
    """How often each event is on the bus."""
    ids = Counter(fields["id"] for _, fields in r.xrange(KEY))
    assert ids.keys() == {str(row.id) for row in OutboxEvent.objects.all()}
    return sorted(ids.values())


@pytest.mark.parametrize(("point", "on_the_bus"), [("publishing", 0), ("published", 3)])
def test_between_the_commit_and_the_publishing_or_right_after_it(point, on_the_bus, killed, burst, all_is_well, r):
    """Events on the bus were confirmed in the same step, so no relay publishes them again."""
    killed("shell", "-c", PLACE_THREE_ORDERS, at=point)
    assert r.xlen(KEY) == on_the_bus
    assert OutboxEvent.objects.exclude(due_at=None).count() == 3

    relay_at_once()
    burst()
    assert published(r) == [1, 1, 1]
    assert not OutboxEvent.objects.exclude(due_at=None).exists()
    assert all_is_well(3)


@pytest.mark.parametrize(("point", "left"), [("confirmations read", 3), ("rows marked", 0)])
def test_while_it_marks_confirmed_rows(point, left, killed, burst, all_is_well, r):
    killed("shell", "-c", PLACE_THREE_ORDERS, at="published")
    relay_at_once()
    killed(*LISTEN, "--process-name", "web", "--burst", at=point)
    assert OutboxEvent.objects.exclude(due_at=None).count() == left

    burst()
    assert published(r) == [1, 1, 1]
    assert not OutboxEvent.objects.exclude(due_at=None).exists()
    assert all_is_well(3)


@pytest.mark.parametrize(("point", "on_the_bus"), [("relaying", 0), ("relayed", 3)])
def test_while_it_relays_what_another_left(point, on_the_bus, killed, burst, all_is_well, r):
    killed("shell", "-c", PLACE_THREE_ORDERS, at="publishing")
    relay_at_once()
    killed(*LISTEN, "--process-name", "web", "--burst", at=point)
    assert r.xlen(KEY) == on_the_bus
    burst()
    assert r.xlen(KEY) == on_the_bus  # it has GRACE to come to an end with it

    relay_at_once()
    burst()
    assert r.xlen(KEY) == on_the_bus + 3
    assert all_is_well(3)
