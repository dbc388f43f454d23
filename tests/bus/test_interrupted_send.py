"""A send to Redis that is interrupted."""

import sys

import pytest

from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.wire import exchange


def test_replies_of_an_interrupted_send_are_not_taken_for_others(r, lightbus_url):
    """As Ctrl-C, or Celery's soft time limit, may come between two calls of redis-py."""
    redis_client = RedisClient(lightbus_url, timeout=10)
    redis_client.send([(b"PING",)])

    def trace(frame, event, arg):
        if frame.f_code is exchange.__code__:
            if event == "line" and "replies" in frame.f_locals:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace
        return None

    r.client_pause(500)
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            redis_client.send([(b"ECHO", b"one")])
    finally:
        sys.settrace(None)
    assert redis_client.send([(b"ECHO", b"two")]) == [b"two"]
    redis_client.close()
