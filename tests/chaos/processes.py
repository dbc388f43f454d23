"""Processes that are started, killed, frozen and started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

_GUARD = """
import os, signal, sys
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
"""


@contextmanager
def process_group() -> Iterator[int]:
    """Yield a process group; all that is left in it is killed in the end, and when this process is, too."""
    guard = subprocess.Popen([sys.executable, "-c", _GUARD], stdin=subprocess.PIPE, process_group=0)
    try:
        yield guard.pid
    finally:
        assert guard.stdin
        guard.stdin.close()
        guard.wait()


class Child:
    """A process of ours, started again and again under one name; each start has a log of its own."""

    def __init__(
        self, name: str, command: Sequence[str], *, group: int, logs: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = command
        self.group = group
        self.logs = logs
        self.environment = environment
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.command, *self.arguments()],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=self.group,
            )

    def arguments(self) -> list[str]:
        """What the command takes beside, at each start."""
        return []

    @property
    def log(self) -> Path:
        return self.logs / f"{self.name}.{self.starts}.log"

    @property
    def exit_code(self) -> int | None:
        return self.process.poll()

    @property
    def runs(self) -> bool:
        return self.exit_code is None

    def send(self, signum: signal.Signals) -> None:
        if self.runs:
            os.kill(self.process.pid, signum)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)


class Worker(Child):
    """`manage.py lightbus_listen`."""

    def __init__(self, name: str, process_name: str, *arguments: str, **options: object) -> None:
        command = [sys.executable, "manage.py", "lightbus_listen", f"--process-name={process_name}", *arguments]
        super().__init__(name, command, **options)  # type: ignore[arg-type]
        self.stops: list[tuple[float, float]] = []
        """From when to when it was being stopped."""

    @property
    def is_ready(self) -> bool:
        """Whether it has got so far that it listens to signals."""
        with self.log.open("rb") as log:
            return b" listens to " in log.read(100_000)

    def stop(self) -> Iterator[float]:
        """Stop it cleanly; yields the seconds to wait before going on with that."""
        while self.runs and not self.is_ready:
            yield 0.05
        asked_at = time.time()
        self.send(signal.SIGTERM)
        while self.runs and time.time() - asked_at < 45:
            yield 0.05
        self.stops.append((asked_at, time.time()))


class Producer(Child):
    def __init__(self, name: str, *, events: int, rate: float, until: float, **options: object) -> None:
        numbers = f"--events={events}", f"--rate={rate}", f"--until={until}"
        command = [sys.executable, "-m", "tests.chaos.producer", name, *numbers]
        super().__init__(name, command, **options)  # type: ignore[arg-type]

    def arguments(self) -> list[str]:
        return [f"--start={self.starts}"]

    @property
    def is_done(self) -> bool:
        return self.exit_code == 0
