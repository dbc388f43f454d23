"""pydocket: 50 tasks at a time, for its pool has 100 connections, and a look for more each millisecond instead of four
a second, for it waits that long whenever 50 are running. Nothing is kept of a task that is over.

At least once: what a dead worker had is delivered again after `redelivery_timeout`, five minutes. A task that raises is
over, unless it declares a Retry.
"""

from datetime import timedelta

import contender
from docket import Docket, Worker

race = contender.Race()


async def handle(sku: str, price: str, number: int, at: str) -> None:
    race.stopwatch.tick()


def open_docket() -> Docket:
    return Docket(name="race", url=race.url, execution_ttl=timedelta(0))


async def publish() -> None:
    async with open_docket() as docket:
        await docket.add_many([docket.call(handle)(**payload) for payload in race.payloads])


async def consume() -> None:
    async with open_docket() as docket:
        docket.register(handle)
        async with Worker(docket, concurrency=50, minimum_check_interval=timedelta(milliseconds=1)) as worker:
            await worker.run_until_finished()


async def fire() -> None:
    async with open_docket() as docket:
        for payload in race.payloads:
            await docket.add(handle)(**payload)
            race.stopwatch.tick()


race.run(publish=publish, consume=consume, fire=fire)
