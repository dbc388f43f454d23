"""`--processes N`: a parent that runs N workers, each a process with a name of its own."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

from django.conf import settings

from lightbus_django.bus.sandbox import NO_BUS, keeps_events
from lightbus_django.exceptions import ConfigurationError
from lightbus_django.listening.registry import registry

logger = logging.getLogger("lightbus_django")

MAX_DELAY = 30.0
"""Seconds at most until a process that was killed is started again; the delay grows if that goes on."""

GOOD_WHILE = 60.0
"""Seconds after which a process was not killed at once."""


PARENT = "LIGHTBUS_PARENT"
"""The environment variable that tells a child the process id of its parent."""

# Not the parent's own command line: that may be a script, which would start processes of its own. The path goes as an
# argument, for with -I Python looks at no environment variable.
_COMMAND = (
    "import json, os, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "package = 'configurations' if os.environ.get('DJANGO_CONFIGURATION') else 'django.core'; "
    "management = __import__(package + '.management', fromlist=['management']); "
    "management.execute_from_command_line(['manage.py', *sys.argv[1:]])"
)


def run_processes(count: int, process_name: str, options: Sequence[str], *, stop_timeout: float) -> int:
    """Run `lightbus_listen` in `count` processes, named `{process_name}-1` and so on; return the exit code.

    SIGTERM or SIGINT stops them all cleanly, a second one ends them at once. One that is killed is
    started again under its name. One that ends with an error, as it does when it can't start at all,
    ends all.

    Args:
        options: of the command; those that a child has anyway are added.
        stop_timeout: seconds after which a child that was told to stop is killed.

    Raises:
        ConfigurationError: the children could not have the settings or the listeners of this process.
    """
    environment = _child_environment()
    command = [sys.executable, *_interpreter_flags(), "-c", _COMMAND, json.dumps(list(map(str, sys.path)))]
    names = [f"{process_name}-{number}" for number in range(1, count + 1)]
    children = [
        _Child(name, [*command, "lightbus_listen", *options, f"--process-name={name}"], environment) for name in names
    ]
    return _Family(children).run(stop_timeout)


def _child_environment() -> dict[str, str]:
    if os.environ.get(PARENT) == str(os.getppid()):
        raise ConfigurationError(
            "A process of lightbus_listen would start processes of its own: something that Django imports as it starts "
            "calls the command. Call it from a script that nothing else imports."
        )
    if keeps_events():
        raise ConfigurationError(NO_BUS)
    if not sys.executable:
        raise ConfigurationError("--processes needs Python's own interpreter; this process runs in another program.")
    module = getattr(settings, "SETTINGS_MODULE", None)
    if not module:
        raise ConfigurationError(
            "--processes needs settings in a module that DJANGO_SETTINGS_MODULE names: other processes can't get those "
            "of settings.configure() or override_settings()."
        )
    for listener in registry:
        if listener.handler.__module__ == "__main__":
            raise ConfigurationError(
                f"--processes can't run the listener {listener.path} of the script itself: move it to the listeners.py "
                "of an installed app."
            )
    return {**os.environ, "DJANGO_SETTINGS_MODULE": module, PARENT: str(os.getpid())}


def _interpreter_flags() -> list[str]:
    """Return the options that this interpreter was started with."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    # What that leaves out. To give an option twice does no harm.
    flags += [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
    if getattr(sys.__stdout__, "write_through", False):
        flags.append("-u")
    return flags


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
        before = {signum: signal.signal(signum, self._on_signal) for signum in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self._run(stop_timeout)
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _run(self, stop_timeout: float) -> int:
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

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.command = [*command, "--stop-with-parent"]
        self.environment = environment
        self.started_at = 0.0
        self.delay = 0.0

    def start(self) -> None:
        self.started_at = time.monotonic()
        # The pipe stays open as long as this process lives and wants the child to. A session of its own
        # keeps the terminal's Ctrl-C from it, which it may not be ready for.
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdin=subprocess.PIPE, start_new_session=True
        )

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
