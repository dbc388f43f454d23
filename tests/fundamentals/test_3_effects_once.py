"""At least once would mean: sometimes twice. But the idempotency key of an event is committed in one
transaction with what its handler wrote, so its effects in that database happen once.
"""

from lightbus_django import fire
from lightbus_django.models import ProcessedEvent
from tests.conftest import eventually

KEY = "shop.*:stream"


def test_a_process_that_dies_in_the_middle_leaves_nothing_half_done(manage, effects, tmp_path):
    """The handler wrote its row, and died before the commit."""
    process = manage("lightbus_listen", "--process-name", "web")
    fire("shop.parcel_delivered", number=1, dies=True, once=str(tmp_path / "died"))
    process.wait(30)
    assert effects("fragile") == []
    assert not ProcessedEvent.objects.exists()


def test_an_event_that_is_published_again_is_not_handled_again(manage, effects, r):
    """As after a crash between publishing and taking note of it."""
    fire("shop.order_placed", number=1)
    ((_, fields),) = r.xrange(KEY)
    r.xadd(KEY, fields)
    r.xadd(KEY, fields)
    assert manage("lightbus_listen", "--burst").wait(30) == 0
    r.xadd(KEY, fields)
    assert manage("lightbus_listen", "--burst").wait(30) == 0
    assert effects("book") == [1]
    assert r.xpending(KEY, "price-monitor-book")["pending"] == 0


def test_an_event_that_was_committed_and_not_acknowledged_is_not_handled_again(manage, effects, r):
    """As after a crash between the commit and the acknowledgement: the event is delivered once more."""
    fire("shop.order_placed", number=1)
    assert manage("lightbus_listen", "--burst", "--process-name", "web").wait(30) == 0
    r.xgroup_setid(KEY, "price-monitor-book", "0")
    r.xreadgroup("price-monitor-book", "web", {KEY: ">"})
    assert manage("lightbus_listen", "--burst", "--process-name", "web").wait(30) == 0
    assert effects("book") == [1]
    assert r.xpending(KEY, "price-monitor-book")["pending"] == 0


def test_two_processes_with_one_event_at_a_time(manage, effects, r, pending):
    """The first exceeds the timeout with the event in hand, so the second takes it: one of them commits."""
    quick = {"LIGHTBUS_ACKNOWLEDGEMENT_TIMEOUT": "0.5", "LIGHTBUS_RECLAIM_INTERVAL": "0.1"}
    fire("shop.parcel_delivered", number=1, sleep=2)
    for name in ("web-1", "web-2"):
        manage("lightbus_listen", "--process-name", name, **quick)
    eventually(lambda: effects("fragile") == [1])
    eventually(lambda: pending("price-monitor-fragile") == 0)
    assert effects("fragile") == [1]
    assert ProcessedEvent.objects.filter(consumer_group="price-monitor-fragile").count() == 1
