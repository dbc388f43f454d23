"""The states of an outbox event, and how they follow one another."""

from datetime import timedelta

import pytest
from django.db.models import F, Value
from django.utils import timezone

from lightbus_django.models import Claim, OutboxEvent, QueuePosition

pytestmark = pytest.mark.django_db

OUTBOX = OutboxEvent.objects
MINUTE = timedelta(minutes=1)


@pytest.fixture
def now():
    return timezone.now()


def states(now):
    """Return the states that the only event is in."""
    found = {
        "unpublished": OUTBOX.unpublished(),
        "waiting": OUTBOX.waiting(now),
        "due": OUTBOX.due(now),
        "claimed": OUTBOX.claimed(now),
        "refused": OUTBOX.refused(),
        "published": OUTBOX.published(),
    }
    return {state for state, events in found.items() if events.exists()}


def test_from_the_commit_to_the_publication(now):
    OUTBOX.create(event_name="shop.order_placed", payload="{}", due_at=now)
    assert states(now - MINUTE) == {"unpublished", "waiting"}
    assert states(now) == {"unpublished", "due"}
    assert OUTBOX.all().claim(now, Claim(now + MINUTE)) == 1
    assert states(now) == {"unpublished", "due", "claimed"}
    assert states(now + MINUTE) == {"unpublished", "due"}  # the process died
    assert OUTBOX.all().mark_published(F("created_at"), Value("1-0")) == 1
    assert states(now) == {"published"}
    assert OUTBOX.all().claim(now + MINUTE, Claim(now + 2 * MINUTE)) == 0


def test_a_claim_keeps_others_away_and_is_released_by_its_own_process(now):
    OUTBOX.create(event_name="shop.order_placed", payload="{}", due_at=now)
    ours, anothers = Claim(now + MINUTE), Claim(now + 2 * MINUTE)
    assert OUTBOX.all().claim(now, ours) == 1
    assert OUTBOX.all().claim(now, anothers) == 0
    assert not OUTBOX.claimed_by_others(now, [ours]).exists()
    assert OUTBOX.claimed_by_others(now, [anothers]).exists()
    assert OUTBOX.all().release(anothers) == 0
    assert OUTBOX.all().release(ours) == 1
    assert OUTBOX.all().claim(now, anothers) == 1
    assert OUTBOX.claimed_by(anothers).exists()


def test_a_refused_event_is_due_again_and_forgets_its_error_once_published(now):
    OUTBOX.create(event_name="shop.order_placed", payload="{}", due_at=now, claimed_until=now + MINUTE)
    assert OUTBOX.all().put_off(now + MINUTE, "no") == 1
    assert states(now) == {"unpublished", "waiting", "refused"}
    assert states(now + MINUTE) == {"unpublished", "due", "refused"}
    OUTBOX.all().mark_published(F("created_at"), Value("1-0"))
    assert OUTBOX.get().error == ""


def test_published_again_it_keeps_the_time_of_its_first_publication(now):
    OUTBOX.create(event_name="shop.order_placed", payload="{}", published_at=now)
    assert OUTBOX.published(since=now, until=now + MINUTE).exists()
    assert not OUTBOX.published(until=now).exists()
    assert not OUTBOX.published(since=now + MINUTE).exists()
    assert OUTBOX.all().publish_again() == 1
    assert states(timezone.now()) == {"unpublished", "due"}
    assert OUTBOX.get().published_at == now
    assert OUTBOX.all().publish_again() == 0


def test_the_queue_starts_at_a_position(now):
    events = [
        OUTBOX.create(event_name="shop.order_placed", payload="{}", due_at=now + number // 2 * MINUTE)
        for number in range(6)
    ]
    queue = list(OUTBOX.due(now + 2 * MINUTE))
    assert queue == events
    start = QueuePosition(events[3].due_at, events[3].pk)
    assert OUTBOX.at(start).get() == events[3]
    parts = OUTBOX.due(now + 2 * MINUTE).starting_at(start)
    assert [event for part in parts for event in part] == events[3:]
