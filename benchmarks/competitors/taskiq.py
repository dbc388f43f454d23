"""taskiq with taskiq-redis on streams: no results, no validation of parameters, orjson, uvloop.

At least once while the worker may die: what it leaves unacknowledged is claimed after `idle_timeout`, ten minutes. A
task that raises is acknowledged.
"""

import asyncio

import contender
import uvloop
from taskiq.acks import AcknowledgeType
from taskiq.receiver import Receiver
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisStreamBroker

race = contender.Race()
broker = RedisStreamBroker(race.url, consumer_id="0").with_serializer(ORJSONSerializer())


@broker.task
async def handle(sku: str, price: str, number: int, at: str) -> None:
    race.stopwatch.tick()


async def publish() -> None:
    await broker.startup()
    for payload in race.payloads:
        await handle.kiq(**payload)
    await broker.shutdown()


async def consume() -> None:
    done = asyncio.Event()
    race.stopwatch.when_done = done.set
    receiver = Receiver(broker, validate_params=False, max_async_tasks=100, ack_type=AcknowledgeType.WHEN_EXECUTED)
    await receiver.listen(done)
    await broker.shutdown()


async def fire() -> None:
    await broker.startup()
    for payload in race.payloads:
        await handle.kiq(**payload)
        race.stopwatch.tick()
    await broker.shutdown()


race.run(publish=publish, consume=consume, fire=fire, run_async=uvloop.run)
