"""Points at which a process can be told to kill itself: what `kill -9` does, at a moment of our choice.

KILL_AT names the point, KILL_WITH a signal other than SIGKILL. Nothing else is changed: up to the point the
process does its own work, and behind it too if the signal lets it live.
"""

import functools
import signal
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.confirmations import Confirmations
from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.listening.inbox import Inbox
from lightbus_django.listening.listener import Listener


class Point(NamedTuple):
    owner: type
    method: str
    when: str
    if_result: Callable[[Any], object] = lambda result: True


POINTS = {
    "events read": Point(GroupConsumer, "read", "after", if_result=bool),
    "handler begins": Point(Listener, "call", "before"),
    "handler done": Point(Listener, "call", "after"),
    "transaction committed": Point(Inbox, "handle", "after"),
    "commits durable": Point(Inbox, "confirm", "after"),
    "events reclaimed": Point(GroupConsumer, "reclaim", "after", if_result=bool),
    "delivery counted": Point(GroupConsumer, "count_delivery", "after"),
    "retry committed": Point(Inbox, "retry", "after", if_result=bool),
    "releasing": Point(GroupConsumer, "release", "before"),
    "publishing": Point(Confirmations, "append_confirmed", "before"),
    "published": Point(Confirmations, "append_confirmed", "after"),
    "relaying": Point(RedisClient, "append_many", "before"),
    "relayed": Point(RedisClient, "append_many", "after"),
    "confirmations read": Point(Confirmations, "read", "after", if_result=bool),
    "rows marked": Point(Confirmations, "remove", "before"),
}


def arm(name: str, signum: int = signal.SIGKILL) -> None:
    """Let this process send itself the signal the first time that it comes to the point."""
    point = POINTS[name]
    method = getattr(point.owner, point.method)
    armed = [True]

    def reached() -> None:
        if armed:
            armed.clear()
            # To this thread, for a stop that another thread takes lets this one go on a little.
            signal.pthread_kill(threading.get_ident(), signum)

    @functools.wraps(method)
    def with_point(*args: Any, **kwargs: Any) -> Any:
        if point.when == "before":
            reached()
        result = method(*args, **kwargs)
        if point.when == "after" and point.if_result(result):
            reached()
        return result

    setattr(point.owner, point.method, with_point)
