"""`--processes N`: the parent of N worker processes."""

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from .child_process import ChildProcess, child_environment

logger = logging.getLogger("lightbus_django")

MIN_RESTART_DELAY = 0.5
MAX_RESTART_DELAY = 30.0
"""Minimum seconds between two starts of a child that keeps being killed. The delay doubles each time."""

STABLE_AFTER = 60.0
"""Seconds after which a child that is killed restarts without a delay."""


def run_processes(
    count: int, process_name: str, options: Sequence[str], *, stop_timeout: float, metrics_port: int | None = None
) -> int:
    """Run `lightbus_listen` in `count` processes, named `{process_name}-1` and so on; return the exit code.

    SIGTERM or SIGINT stops all children cleanly, a second signal kills them. A child that is killed is restarted under
    its name. If one fails, for instance because it can't start, all are stopped.

    Args:
        options: command line options of the children.
        stop_timeout: seconds after which a child that was asked to stop is killed.
        metrics_port: the port at which the first child serves its metrics; the others use those after it.

    Raises:
        ConfigurationError: children could not have the settings or the listeners of this process.
    """
    environment = child_environment()
    children = []
    for index in range(count):
        own = [] if metrics_port is None else [f"--metrics-port={metrics_port + index}"]
        children.append(ChildProcess(f"{process_name}-{index + 1}", [*options, *own], environment))
    return _Supervisor(children).run(stop_timeout)


class _Supervisor:
    def __init__(self, children: list[ChildProcess]) -> None:
        self._children = children
        self._restart_delays = dict.fromkeys(children, 0.0)
        self._signals = 0

    def run(self, stop_timeout: float) -> int:
        with self._counting_signals():
            for child in self._children:
                child.start()
            while not self._signals and not self._is_over():
                for child in self._children:
                    self._restart_if_killed(child)
                time.sleep(0.1)
            self._stop(stop_timeout)
            return max(self._exit_code(child) for child in self._children)

    def _is_over(self) -> bool:
        """Return whether a child has failed, or all have ended by themselves."""
        codes = [child.returncode for child in self._children]
        return any(code is not None and code > 0 for code in codes) or all(code == 0 for code in codes)

    def _restart_if_killed(self, child: ChildProcess) -> None:
        code = child.returncode
        if code is None or code >= 0:
            return
        age = time.monotonic() - child.started_at
        delay = self._restart_delays[child] if age <= STABLE_AFTER else 0.0
        if age >= delay:
            logger.error("%s was killed by signal %d; restarting it", child.name, -code)
            self._restart_delays[child] = min(2 * delay or MIN_RESTART_DELAY, MAX_RESTART_DELAY)
            child.start()

    def _stop(self, timeout: float) -> None:
        for child in self._children:
            child.stop()
        deadline = time.monotonic() + timeout
        while any(child.returncode is None for child in self._children):
            if self._signals > 1 or time.monotonic() > deadline:
                for child in self._children:
                    child.kill()
            time.sleep(0.05)

    def _exit_code(self, child: ChildProcess) -> int:
        code = child.wait()
        # A signal may also reach a child, such as from systemd, before it has installed its handlers.
        return 0 if self._signals and code == 128 + signal.SIGTERM else code

    @contextmanager
    def _counting_signals(self) -> Iterator[None]:
        before = {signum: signal.signal(signum, self._on_signal) for signum in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signals += 1
