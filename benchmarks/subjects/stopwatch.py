"""Time, of the clock on the wall and of the processor; that of the servers too, where it is asked for."""

import os
import time
from typing import Self

from .server_cpu import Servers

MEASURES_SERVERS = "BENCHMARKS_SERVER_CPU"
"""The environment variable that makes a stopwatch look at the servers too."""


class Stopwatch:
    """Runs within its `with` block; entered again, it goes on."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.server_seconds: dict[str, float] = {}
        self._servers = Servers() if os.environ.get(MEASURES_SERVERS) else None

    def __enter__(self) -> Self:
        self._servers_started = self._servers.cpu_seconds() if self._servers else {}
        self._started = time.perf_counter()
        self._cpu_started = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started
        self.cpu_seconds += time.process_time() - self._cpu_started
        for name, started in self._servers_started.items():
            taken = self._servers.cpu_seconds()[name] - started if self._servers else 0.0
            self.server_seconds[name] = self.server_seconds.get(name, 0.0) + taken

    def sample(self, events: int) -> dict[str, float]:
        return {
            "events": events,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            **{f"{name}_seconds": seconds for name, seconds in self.server_seconds.items()},
        }
