"""The event loop of the process, in which all async handlers run.

`async_to_sync` alone creates a loop for each call, so an async client that connected in one event would fail in the
next, because the loop of its connection is closed.
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
"""The tasks that the event has started."""


def run(function: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run an async function in the loop, and what it passes to `sync_to_async`, such as queries, in this thread.

    Tasks that it started and that have not ended are cancelled.
    """
    # asgiref takes the loop from here, as in a thread that was started from that loop. Without this attribute of
    # asgiref's, each call has a loop of its own.
    state = vars(getattr(SyncToAsync, "threadlocal", threading.local()))
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
    """Create a task and add it to those of the event whose context it has."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **kwargs)
    context = kwargs.get("context")
    tasks = context.get(_tasks) if context is not None else _tasks.get()
    if tasks is not None:
        tasks.add(task)
    return task


class _Threads(ThreadPoolExecutor):
    """The threads of `asyncio.to_thread` and the like. They close their database connections after each call."""

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
"""The loops of this process and of those it was forked from, by process id."""


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
        with suppress(BaseException):  # such as SystemExit in a task, which its handler also receives
            loop.run_forever()
