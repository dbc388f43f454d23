"""FastStream, 100 events per handler call: the settings of faststream.py, and `batch=True`.

At least once: a batch is acknowledged when it is handled, by one command, or else it stays pending as a whole.
"""

import asyncio

import contender
import uvloop
from faststream.redis import RedisBroker, StreamSub

race = contender.Race()
broker = RedisBroker(race.url, logger=None, apply_types=False)


@broker.subscriber(stream=StreamSub("prices", group="race", consumer="one", last_id="0", batch=True, max_records=100))
async def handle(events: list[dict]) -> None:
    race.stopwatch.tick(len(events))


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
