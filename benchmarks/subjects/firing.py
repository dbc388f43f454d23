"""Firing without a database. The first event opens the connection and is not timed."""

from lightbus_django import fire, fire_many
from lightbus_django.events.ids import uuid7

from .events import EVENT, STREAM, connect, fields_of, payload
from .stopwatch import Stopwatch
from .tally import check_stream

Sample = dict[str, float]

MANY = 100


def ours(events: int) -> Sample:
    fire(EVENT, **payload(0))
    with Stopwatch() as stopwatch:
        for number in range(events):
            fire(EVENT, **payload(number))
    return _checked(stopwatch, events)


def xadd(events: int) -> Sample:
    client = connect()
    client.xadd(STREAM, fields_of(uuid7(), 0))
    with Stopwatch() as stopwatch:
        for number in range(events):
            client.xadd(STREAM, fields_of(uuid7(), number))
    return _checked(stopwatch, events)


def ours_many(events: int) -> Sample:
    fire(EVENT, **payload(0))
    with Stopwatch() as stopwatch:
        for first in range(0, events, MANY):
            fire_many([(EVENT, payload(number)) for number in range(first, min(first + MANY, events))])
    return _checked(stopwatch, events)


def pipeline(events: int) -> Sample:
    client = connect()
    client.xadd(STREAM, fields_of(uuid7(), 0))
    with Stopwatch() as stopwatch:
        for first in range(0, events, MANY):
            pipeline = client.pipeline(transaction=False)
            for number in range(first, min(first + MANY, events)):
                pipeline.xadd(STREAM, fields_of(uuid7(), number))
            pipeline.execute()
    return _checked(stopwatch, events)


def _checked(stopwatch: Stopwatch, events: int) -> Sample:
    check_stream(connect(), events + 1)
    return stopwatch.sample(events)
