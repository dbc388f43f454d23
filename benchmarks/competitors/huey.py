"""Huey: a single worker thread, which blocks on the list, no results, no periodic tasks.

At most once: a task is taken off the list before it runs, so it is lost if its worker dies.
"""

import signal

import contender
from huey import RedisHuey

race = contender.Race()
huey = RedisHuey(url=race.url, results=False)


@huey.task()
def handle(sku: str, price: str, number: int, at: str) -> None:
    race.stopwatch.tick()


def publish() -> None:
    for payload in race.payloads:
        handle(**payload)


def consume() -> None:
    race.stopwatch.when_done = lambda: signal.raise_signal(signal.SIGINT)  # which ends it gracefully
    huey.create_consumer(workers=1, periodic=False).run()


def fire() -> None:
    for payload in race.payloads:
        handle(**payload)
        race.stopwatch.tick()


race.run(publish=publish, consume=consume, fire=fire)
