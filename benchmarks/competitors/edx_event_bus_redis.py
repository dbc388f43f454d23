"""edx-event-bus-redis, the event bus of Open edX for Django: no audit log, no telemetry, and a stream that is not cut
off before the race is over. It reads events one by one, whatever one sets.

At least once while the process may die. An event whose receiver raises is logged and acknowledged.
"""

import contender
import django
from django.conf import settings
from openedx_events.event_bus import get_producer, make_single_consumer
from openedx_events.tooling import OpenEdxPublicSignal

race = contender.Race()
settings.configure(
    INSTALLED_APPS=["openedx_events", "edx_event_bus_redis"],
    EVENT_BUS_PRODUCER="edx_event_bus_redis.create_producer",
    EVENT_BUS_CONSUMER="edx_event_bus_redis.RedisEventConsumer",
    EVENT_BUS_REDIS_CONNECTION_URL=race.url,
    EVENT_BUS_REDIS_STREAM_MAX_LEN=len(race.payloads),
    EVENT_BUS_REDIS_AUDIT_LOGGING_ENABLED=False,
    OPENEDX_TELEMETRY=[],
)
django.setup()
PRICE_CHANGED = OpenEdxPublicSignal("race.price.changed.v1", {"sku": str, "price": str, "number": int, "at": str})


def handle(sku: str, price: str, number: int, at: str, **kwargs: object) -> None:
    race.stopwatch.tick()


def send(payload: contender.Payload) -> None:
    get_producer().send(
        signal=PRICE_CHANGED,
        topic="prices",
        event_key_field="sku",
        event_data=payload,
        event_metadata=PRICE_CHANGED.generate_signal_metadata(),
    )


def publish() -> None:
    for payload in race.payloads:
        send(payload)


def consume() -> None:
    PRICE_CHANGED.connect(handle)
    consumer = make_single_consumer(topic="prices", group_id="race", consumer_name="one", check_backlog=True)
    race.stopwatch.when_done = consumer._shut_down
    consumer.consume_indefinitely()


def fire() -> None:
    for payload in race.payloads:
        send(payload)
        race.stopwatch.tick()


race.run(publish=publish, consume=consume, fire=fire)
