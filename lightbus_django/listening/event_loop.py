"""The event loop of this process, in a thread of its own, where all async handlers run.

`async_to_sync` alone makes a new loop for each call. An async client that was connected in one event would then fail in
the next one, because its connection belongs to a loop that is closed.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakSet

from asgiref.sync import AsyncToSync, SyncToAsync
from django.db import connections, reset_queries

Result = TypeVar("Result")

_tasks: ContextVar[WeakSet["asyncio.Task[Any]"] | None] = ContextVar("lightbus_tasks", default=None)
"""The tasks that were started in the event at hand."""


def run(function: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run an async function in the loop, and in this thread what it gives to `sync_to_async`, such as its queries.

    Tasks that it started are cancelled if they have not ended with it.
    """
    # asgiref runs a function in the loop that it finds here, as it would in a thread that was called from that loop.
    state = vars(SyncToAsync.threadlocal)
    before = dict(state)
    state.update(main_event_loop=_get_loop(), main_event_loop_pid=os.getpid())
    try:
        return AsyncToSync(_run)(function)
    finally:
        state.clear()
        state.update(before)


async def _run(function: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
    _tasks.set(tasks)
    try:
        return await function()
    finally:
        while running := [task for task in tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running)


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> "asyncio.Task[Any]":
    """Make a task. It belongs to the event whose context it has, if any."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **kwargs)
    context = kwargs.get("context")
    tasks = context.get(_tasks) if context is not None else _tasks.get()
    if tasks is not None:
        tasks.add(task)
    return task


class _Threads(ThreadPoolExecutor):
    """The threads for `asyncio.to_thread` and the like. They keep no connection, which nobody would look after."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return super().submit(_call_and_close, function, *args, **kwargs)


def _call_and_close(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    try:
        return function(*args, **kwargs)
    finally:
        reset_queries()
        connections.close_all()


_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}
"""The loop of this process, and perhaps those of processes that it was forked from, by their ids."""


def _get_loop() -> asyncio.AbstractEventLoop:
    with _lock:
        if (loop := _loops.get(os.getpid())) is None:
            loop = asyncio.new_event_loop()
            loop.set_task_factory(_make_task)
            loop.set_default_executor(_Threads(thread_name_prefix="async-handlers"))
            threading.Thread(target=_run_forever, args=[loop], name="async-handlers", daemon=True).start()
            _loops[os.getpid()] = loop
    return loop


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    while not loop.is_closed():
        with suppress(BaseException):  # such as sys.exit() in a task, which its handler gets to know
            loop.run_forever()
