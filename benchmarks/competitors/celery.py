"""Celery: a solo worker, which hands its tasks to no pool (and reads them one by one), with late acknowledgements, and
without all that can be left out: results, events, gossip, mingling, heartbeats, remote control, rate limits.

At least once while the worker may die: its messages come again after the visibility timeout, an hour. A task that
raises is acknowledged, unless it retries itself.
"""

import signal

import contender
from celery import Celery

race = contender.Race()
app = Celery(broker=race.url)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_disable_rate_limits=True,
    worker_enable_remote_control=False,
    worker_redirect_stdouts=False,
)


@app.task
def handle(sku: str, price: str, number: int, at: str) -> None:
    race.stopwatch.tick()


def publish() -> None:
    with app.producer_pool.acquire() as producer, producer.batch():
        for payload in race.payloads:
            handle.apply_async(kwargs=payload, producer=producer)


def consume() -> None:
    race.stopwatch.when_done = lambda: signal.raise_signal(signal.SIGTERM)
    unneeded = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True}
    app.Worker(pool="solo", loglevel="WARNING", quiet=True, **unneeded).start()


def fire() -> None:
    for payload in race.payloads:
        handle.apply_async(kwargs=payload)
        race.stopwatch.tick()


race.run(publish=publish, consume=consume, fire=fire)
