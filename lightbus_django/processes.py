"""`--processes N`: a parent that runs N workers, each a process with a name of its own."""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from types import FrameType

from django.utils.autoreload import get_child_arguments

logger = logging.getLogger("lightbus_django")

MAX_DELAY = 30.0
"""Seconds at most until a process that was killed is started again; the delay grows if that goes on."""

GOOD_WHILE = 60.0
"""Seconds after which a process was not killed at once."""


def run_processes(count: int, process_name: str, *, leave: bool, stop_timeout: float) -> int:
    """Run this very command in `count` processes, named `{process_name}-1` and so on; return the exit code.

    With `leave` they leave their consumer groups when they stop.

    SIGTERM or SIGINT stops them all cleanly, a second one ends them at once. One that is killed is
    started again under its name. One that ends with an error, as it does when it can't start at all,
    ends all.
    """
    options = ["--leave"] if leave else []
    names = [f"{process_name}-{number}" for number in range(1, count + 1)]
    return _Family([_Child(name, options) for name in names]).run(stop_timeout)


def stop_with_parent(stop: Callable[[], None]) -> None:
    """Call `stop` in this process, a child of `run_processes`, when its parent says so or is gone, however it went.

    No signal says so: systemd signals the children as well, and a second signal is a hard one.
    """

    def wait() -> None:
        os.read(0, 1)  # returns when the parent's end of the pipe closes
        stop()

    threading.Thread(target=wait, name="parent", daemon=True).start()


class _Family:
    def __init__(self, children: list["_Child"]) -> None:
        self.children = children
        self.signals = 0

    def run(self, stop_timeout: float) -> int:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        for child in self.children:
            child.start()
        while not self.signals and [child for child in self.children if child.is_wanted()]:
            if any(child.failed() for child in self.children):
                break
            time.sleep(0.1)
        for child in self.children:
            child.stop()
        deadline = time.monotonic() + stop_timeout
        while any(child.runs() for child in self.children):
            if self.signals > 1 or time.monotonic() > deadline:
                for child in self.children:
                    child.process.kill()
            time.sleep(0.05)
        # One that was told to stop before it could listen for signals had nothing in hand.
        told_to = {128 + signal.SIGTERM} if self.signals else set()
        return max(0 if child.exit_code() in told_to else child.exit_code() for child in self.children)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.signals += 1


class _Child:
    process: subprocess.Popen[bytes]

    def __init__(self, name: str, options: list[str]) -> None:
        self.name = name
        self.options = ["--processes=1", f"--process-name={name}", "--stop-with-parent", *options]
        self.started_at = 0.0
        self.delay = 0.0

    def start(self) -> None:
        command = [*get_child_arguments(), *self.options]
        self.started_at = time.monotonic()
        # The pipe stays open as long as this process lives and wants the child to. A session of its own
        # keeps the terminal's Ctrl-C from it, which it may not be ready for.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def runs(self) -> bool:
        return self.process.poll() is None

    def is_wanted(self) -> bool:
        """Whether it runs, or will again; it is started again here."""
        code = self.process.poll()
        if code is None:
            return True
        if code >= 0:
            return False
        now = time.monotonic()
        if now - self.started_at > GOOD_WHILE:
            self.delay = 0.0
        if now - self.started_at >= self.delay:
            logger.error("%s was killed by signal %d; starting it again", self.name, -code)
            self.delay = min(2 * self.delay or 0.5, MAX_DELAY)
            self.start()
        return True

    def failed(self) -> bool:
        return bool((code := self.process.poll()) and code > 0)

    def stop(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()

    def exit_code(self) -> int:
        """Its exit code as a shell counts it."""
        code = self.process.wait()
        return code if code >= 0 else 128 - code
