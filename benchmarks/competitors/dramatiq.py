"""Dramatiq: 1,000 messages prefetched, a single worker thread, for more of them only wait for each other, and of the
middleware only what retries.

At least once: the messages of a worker that has been dead for a minute are queued again, and a task that raises is
retried.
"""

import threading

import contender
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries

race = contender.Race()
broker = RedisBroker(url=race.url, middleware=[Retries()])
dramatiq.set_broker(broker)


@dramatiq.actor
def handle(sku: str, price: str, number: int, at: str) -> None:
    race.stopwatch.tick()


def publish() -> None:
    for payload in race.payloads:
        handle.send(**payload)


def consume() -> None:
    worker = dramatiq.Worker(broker, worker_threads=1)
    worker.queue_prefetch = 1000  # what the environment variable dramatiq_queue_prefetch sets
    done = threading.Event()
    race.stopwatch.when_done = done.set
    worker.start()
    done.wait()
    worker.stop()


def fire() -> None:
    for payload in race.payloads:
        handle.send(**payload)
        race.stopwatch.tick()


race.run(publish=publish, consume=consume, fire=fire)
