"""`--processes N`: a parent that starts workers, each a process under a name of its own."""

import logging
import signal
import subprocess
import time
from types import FrameType

from django.utils.autoreload import get_child_arguments

logger = logging.getLogger("lightbus_django")


def run_processes(count: int, process_name: str, *, stop_timeout: float) -> int:
    """Run this very command `count` times, as `{process_name}-1` and so on, until a signal ends them.

    Returns the exit code: 0 if all ended well.
    """
    children = [
        subprocess.Popen([*get_child_arguments(), "--processes=1", f"--process-name={process_name}-{number}"])
        for number in range(1, count + 1)
    ]
    stopping = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for child in children:
            if child.poll() is None:
                child.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    while any(child.poll() is None for child in children) and not stopping:
        time.sleep(0.1)
        for child in children:
            if child.poll() and not stopping:
                logger.error("a process ended with code %d; ending the others", child.returncode)
                stop(signal.SIGTERM, None)
    for child in children:
        try:
            child.wait(stop_timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    return max(abs(child.returncode) for child in children)
