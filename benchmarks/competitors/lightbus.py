"""Lightbus itself: events read by 100 instead of 10, no validation or casting of parameters, and an async listener, for
one that is not is called in a thread of its own.

At least once: an event is acknowledged when it is handled, by a command of its own, and what is not acknowledged within
a minute is claimed by another process. A listener that raises ends its process.
"""

import contender
import lightbus

race = contender.Race()
at_redis = {"redis": {"url": race.url}}
bus = lightbus.create(
    config={
        "service_name": "race",
        "process_name": "one",
        "bus": {"schema": {"transport": at_redis}},
        "apis": {
            "default": {
                "validate": False,
                "cast_values": False,
                "event_transport": {"redis": {"url": race.url, "batch_size": 100, "max_stream_length": 0}},
                "rpc_transport": at_redis,
                "result_transport": at_redis,
            }
        },
    },
    features=["events"],
)


class PricesApi(lightbus.Api):
    changed = lightbus.Event(parameters=["sku", "price", "number", "at"])

    class Meta:
        name = "prices"


bus.client.register_api(PricesApi())


async def handle(event: lightbus.EventMessage, sku: str, price: str, number: int, at: str) -> None:
    race.stopwatch.tick()


def publish() -> None:
    for payload in race.payloads:
        bus.prices.changed.fire(**payload)


def consume() -> None:
    race.stopwatch.when_done = bus.client.request_shutdown
    bus.prices.changed.listen(handle, listener_name="handle", bus_options={"since": "0"})
    bus.client.run_forever()


def fire() -> None:
    for payload in race.payloads:
        bus.prices.changed.fire(**payload)
        race.stopwatch.tick()


race.run(publish=publish, consume=consume, fire=fire)
