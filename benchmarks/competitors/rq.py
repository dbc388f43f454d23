"""RQ: a SimpleWorker, which forks no process for each job. Finished jobs are kept for as long as they are by default,
because to delete each at once (`result_ttl=0`) takes RQ longer.

At least once as long as there are retries left: a job whose worker has died is found when its heartbeat is too old, and
then retried like one that raised. Without `retry` both count as failed.
"""

import contender
from redis import Redis
from rq import Queue, Retry, SimpleWorker

race = contender.Race()
queue = Queue(connection=Redis.from_url(race.url))
options = {"retry": Retry(max=3)}


def handle(sku: str, price: str, number: int, at: str) -> None:
    race.stopwatch.tick()


def publish() -> None:
    queue.enqueue_many([Queue.prepare_data("__main__.handle", kwargs=payload, **options) for payload in race.payloads])


def consume() -> None:
    SimpleWorker([queue], connection=queue.connection).work(burst=True, logging_level="WARNING")


def fire() -> None:
    for payload in race.payloads:
        queue.enqueue("__main__.handle", kwargs=payload, **options)
        race.stopwatch.tick()


race.run(publish=publish, consume=consume, fire=fire)
