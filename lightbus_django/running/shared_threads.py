"""Threads that listeners share: each thread takes the next listener that has something to do."""

import threading
import time
from collections.abc import Iterator, Mapping

from django.db import connections

from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.stream_watch import StreamWatch
from lightbus_django.database.connections import release_connections
from lightbus_django.exceptions import BusError
from lightbus_django.listening.consumer import BLOCK, Consumer

from .health import Health
from .own_threads import stop_consumer
from .turn import Turn
from .turns import Turns

SLICE = 0.05
"""Seconds after which a listener that has more to do lets the others pass."""

REST = 0.01
"""Seconds for which a busy stream is not watched, because its listeners read it anyway."""

GIVE_WAY = 0.001
"""Seconds between a wake and the next watch, so that this delays neither the woken thread nor its read from Redis."""


class SharedThreads:
    """A number of threads for more listeners than that, and a thread that watches their streams."""

    def __init__(
        self, healths: Mapping[Consumer, Health], count: int, *, client: RedisClient, stopping: threading.Event
    ) -> None:
        """Make the threads; `threads` are to be started.

        Args:
            healths: the consumers, each with its health.
            count: how many threads handle events.
            stopping: when it is set, the threads stop the consumers, and end.
        """
        self._turns = Turns(healths, stopping)
        self._watch = StreamWatch(client)
        self._health = Health("streams", client)
        self._stopping = stopping
        names = [f"listeners {number}" for number in range(1, count + 1)]
        self.threads = [
            *(threading.Thread(target=self._work, name=name, daemon=True) for name in names),
            threading.Thread(target=self._watch_streams, name="streams", daemon=True),
        ]

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                if (turn := self._turns.next()) is not None:
                    self._run(turn)
                else:
                    release_connections(idle=True)
            for turn in self._left():
                stop_consumer(turn.consumer)
        finally:
            connections.close_all()

    def _run(self, turn: Turn) -> None:
        has_more = False

        def step() -> Exception | None:
            nonlocal has_more
            has_more = turn.take(SLICE)
            return turn.consumer.problem

        turn.attempts.run(step)
        self._turns.end(turn, has_more=has_more)

    def _left(self) -> Iterator[Turn]:
        while (turn := self._turns.next_to_stop()) is not None:
            yield turn

    def _watch_streams(self) -> None:
        resting = set(self._turns.streams)
        while not self._stopping.is_set():
            try:
                self._watch_once(resting)
            except BusError as error:
                self._health.failed(error)
                self._watch.close()
                resting.update(self._turns.streams)
                for stream in resting:
                    self._turns.wake(stream)
                self._stopping.wait(BLOCK)
            else:
                self._health.succeeded()
        self._watch.close()

    def _watch_once(self, resting: set[str]) -> None:
        """Wake the listeners of streams that have new entries.

        Args:
            resting: the streams that are not watched, because all of their listeners were busy.
        """
        back = [stream for stream in resting if self._turns.has_waiting(stream)]
        if back:
            self._watch.add(back)
            resting.difference_update(back)
            for stream in back:
                self._turns.wake(stream)  # for what came before it was watched
        if len(resting) == len(self._turns.streams):
            time.sleep(REST)
            return
        moved = self._watch.wait(REST if resting else BLOCK)
        for stream in moved:
            if not self._turns.wake(stream):
                self._watch.drop(stream)
                resting.add(stream)
        if moved:
            time.sleep(GIVE_WAY)
