"""What the tests of consumers see of streams and of what handlers did."""

from tests.app.models import Effect

KEY = "shop.*:stream"
GROUP = "price-monitor-record"


def effects():
    return list(Effect.objects.order_by("id").values_list("number", flat=True))


def pending(r, group=GROUP, key=KEY):
    return r.xpending(key, group)["pending"]


def fetch(r, consumer, count=100, group=GROUP, key=KEY):
    """Read as a process does that dies before it handles anything; return the stream ids."""
    ((_, entries),) = r.xreadgroup(group, consumer, {key: ">"}, count=count)
    return [stream_id for stream_id, _ in entries]


def age(r, stream_ids, consumer, seconds=3600, group=GROUP, key=KEY):
    r.xclaim(key, group, consumer, 0, stream_ids, idle=seconds * 1000, justid=True)


def delivered(r):
    """Return how often each pending event was delivered."""
    return [row["times_delivered"] for row in r.xpending_range(KEY, GROUP, "-", "+", 100)]
