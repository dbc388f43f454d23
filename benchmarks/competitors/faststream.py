"""FastStream, one event per handler call: a stream that is read by 100, no validation of parameters, orjson, uvloop.

At least once: an event is acknowledged when it is handled, by a command of its own. What raised, or was left by a dead
process, stays pending until a second subscriber, with `min_idle_time`, claims it.
"""

import asyncio

import contender
import uvloop
from faststream.redis import RedisBroker, StreamSub

race = contender.Race()
broker = RedisBroker(race.url, logger=None, apply_types=False)


@broker.subscriber(stream=StreamSub("prices", group="race", consumer="one", last_id="0", max_records=100))
async def handle(event: dict) -> None:
    race.stopwatch.tick()


async def publish() -> None:
    async with broker:
        for payload in race.payloads:
            await broker.publish(payload, stream="prices")


async def consume() -> None:
    done = asyncio.Event()
    race.stopwatch.when_done = done.set
    async with broker:
        await broker.start()
        await done.wait()


async def fire() -> None:
    async with broker:
        for payload in race.payloads:
            await broker.publish(payload, stream="prices")
            race.stopwatch.tick()


race.run(publish=publish, consume=consume, fire=fire, run_async=uvloop.run)
