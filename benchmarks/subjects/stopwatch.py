"""Time, of the clock on the wall and of the processor."""

import time
from typing import Self


class Stopwatch:
    """Runs within its `with` block; entered again, it goes on."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._cpu_started = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started
        self.cpu_seconds += time.process_time() - self._cpu_started

    def sample(self, events: int) -> dict[str, float]:
        return {"events": events, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
