"""Listeners that share threads: which of them have something to do, and which is next."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Collection, Mapping

from lightbus_django.listening.consumer import BLOCK, Consumer

from .health import Health
from .turn import Turn, TurnState

TICK = 0.25
"""Seconds between two looks for listeners that are due."""


class Turns:
    """All turns of a worker. Any thread may call any method."""

    def __init__(self, healths: Mapping[Consumer, Health], stopping: threading.Event) -> None:
        self._turns = [Turn(consumer, health) for consumer, health in healths.items()]
        self._stopping = stopping
        self._ready = deque(self._turns)
        self._changed = threading.Condition()
        self._look_at = 0.0
        self._by_stream: defaultdict[str, list[Turn]] = defaultdict(list)
        for turn in self._turns:
            for stream in turn.consumer.streams:
                self._by_stream[stream].append(turn)

    @property
    def streams(self) -> Collection[str]:
        return self._by_stream.keys()

    def next(self) -> Turn | None:
        """Return the listener that has been ready longest; wait up to BLOCK for one. None if there is none."""
        until = time.monotonic() + BLOCK
        with self._changed:
            while not self._stopping.is_set() and (now := time.monotonic()) < until:
                self._find_due(now)
                if self._ready:
                    turn = self._ready.popleft()
                    turn.state, turn.is_wanted_again = TurnState.RUNNING, False
                    return turn
                self._changed.wait(TICK)
        return None

    def end(self, turn: Turn, *, has_more: bool) -> None:
        """Take note that a listener's turn is over."""
        due_at = turn.next_step_at()
        with self._changed:
            if turn.attempts.delay:
                turn.state, turn.due_at = TurnState.DELAYED, time.monotonic() + turn.attempts.delay
            elif has_more or turn.is_wanted_again:
                self._make_ready(turn)
            else:
                turn.state, turn.due_at = TurnState.WAITING, due_at

    def next_to_stop(self) -> Turn | None:
        """Return a listener to stop that no thread has; None if there is none."""
        with self._changed:
            for turn in self._turns:
                if turn.state not in (TurnState.RUNNING, TurnState.STOPPED):
                    turn.state = TurnState.STOPPED
                    return turn
        return None

    def wake(self, stream: str) -> bool:
        """Make the listeners of a stream ready that wait for events; return whether there are any."""
        has_waiting = False
        with self._changed:
            for turn in self._by_stream[stream]:
                if turn.state is TurnState.WAITING:
                    has_waiting = True
                    self._make_ready(turn)
                elif turn.state is TurnState.RUNNING:
                    turn.is_wanted_again = True
        return has_waiting

    def has_waiting(self, stream: str) -> bool:
        """Whether a listener of the stream waits for events."""
        return any(turn.state is TurnState.WAITING for turn in self._by_stream[stream])

    def _find_due(self, now: float) -> None:
        if now >= self._look_at:
            self._look_at = now + TICK
            for turn in self._turns:
                if turn.is_due(now):
                    self._make_ready(turn)

    def _make_ready(self, turn: Turn) -> None:
        turn.state = TurnState.READY
        self._ready.append(turn)
        self._changed.notify()
