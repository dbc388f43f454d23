"""Wrappers around the calls of handlers, as Django has execute wrappers around statements; `otel` adds one."""

from collections.abc import Callable
from functools import partial
from typing import Any

from .listener import Listener

Call = Callable[[Any], None]
"""Calls a handler with an event message or, if it is a batch handler, with a list of them."""

Wrapper = Callable[[Call, Listener, str, Any], None]
"""Calls its first argument with its last, and does something around that. The others are the listener and its group.

It runs in the context of the event, which is dropped after the commit hooks of the handler.
"""

wrappers: list[Wrapper] = []


def wrapped(call: Call, listener: Listener, group: str) -> Call:
    """Return a call with all wrappers around it, the last one outermost."""
    for wrapper in wrappers:
        call = partial(wrapper, call, listener, group)
    return call
